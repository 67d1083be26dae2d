#include "output_pool.h"

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <list>
#include <mutex>

#include <unistd.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace dgm_fast {
namespace {

constexpr size_t kHugePage = 2 << 20;
// What the pool keeps idle at most: a sixteenth of the machine's memory, and no more than the gradients of a few
// of the largest decoder outputs.
size_t max_idle() {
  constexpr size_t kMost = size_t{1} << 30;
  static const size_t limit = [] {
#ifdef _SC_PHYS_PAGES
    const auto pages = sysconf(_SC_PHYS_PAGES);
    const auto page = sysconf(_SC_PAGESIZE);
    if (pages > 0 && page > 0) {
      const auto share = static_cast<size_t>(pages) * static_cast<size_t>(page) / 16;
      return share < kMost ? share : kMost;
    }
#endif
    return kMost / 4;
  }();
  return limit;
}

struct Block {
  void* data;
  size_t size; // allocated
  size_t asked; // by the tensor in use
};

size_t rounded(size_t size) {
  const size_t unit = size >= 2 * kHugePage ? kHugePage : size_t{256} << 10;
  return (size + unit - 1) / unit * unit;
}

class Pool final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    Block* block = take(rounded(size));
    block->asked = size;
    report(block->data, static_cast<int64_t>(size));
    return {block->data, block, &give_back, c10::Device(c10::DeviceType::CPU)};
  }

  void copy_data(void* to, const void* from, size_t count) const override {
    std::memcpy(to, from, count);
  }

  void empty() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Block* block : idle_) {
      release(block);
    }
    idle_.clear();
    idle_bytes_ = 0;
  }

  size_t idle_bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return idle_bytes_;
  }

 private:
  // The idle block used last among those that fit without much waste, else a new one.
  Block* take(size_t size) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = std::find_if(idle_.begin(), idle_.end(), [&](const Block* block) {
        return block->size >= size && block->size - size <= size / 4;
      });
      if (found != idle_.end()) {
        Block* block = *found;
        idle_.erase(found);
        idle_bytes_ -= block->size;
        return block;
      }
    }
    const bool huge = size >= 2 * kHugePage;
    void* data = nullptr;
    if (posix_memalign(&data, huge ? kHugePage : 64, size) != 0) {
      empty();
      TORCH_CHECK_WITH(
          OutOfMemoryError,
          posix_memalign(&data, huge ? kHugePage : 64, size) == 0,
          "dgm_fast: no memory for an output of ",
          size,
          " bytes");
    }
#ifdef __linux__
    if (huge) {
      // A hint: where the system refuses it, ordinary pages serve.
      madvise(data, size, MADV_HUGEPAGE);
    }
#endif
    return new Block{data, size, 0};
  }

  static void give_back(void* context) {
    auto* block = static_cast<Block*>(context);
    report(block->data, -static_cast<int64_t>(block->asked));
    instance().keep(block);
  }

  void keep(Block* block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_front(block);
    idle_bytes_ += block->size;
    while (idle_bytes_ > max_idle()) {
      Block* oldest = idle_.back();
      idle_.pop_back();
      idle_bytes_ -= oldest->size;
      release(oldest);
    }
  }

  static void release(Block* block) {
    std::free(block->data);
    delete block;
  }

  // As PyTorch's own allocator does, so that memory profiles stay complete.
  static void report(void* data, int64_t change) {
    if (c10::memoryProfilingEnabled()) {
      c10::reportMemoryUsageToProfiler(data, change, 0, 0, c10::Device(c10::DeviceType::CPU));
    }
  }

 public:
  // Never destroyed: tensors may outlive the end of the process's main function.
  static Pool& instance() {
    static Pool* pool = new Pool();
    return *pool;
  }

 private:
  std::mutex mutex_;
  std::list<Block*> idle_; // most recently used first
  size_t idle_bytes_ = 0;
};

} // namespace

c10::Allocator* output_pool() {
  return &Pool::instance();
}

void empty_output_pool() {
  Pool::instance().empty();
}

size_t output_pool_idle_bytes() {
  return Pool::instance().idle_bytes();
}

size_t output_pool_limit() {
  return max_idle();
}

} // namespace dgm_fast
