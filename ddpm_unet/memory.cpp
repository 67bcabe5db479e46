// Memory for torch's large tensors on the CPU: from one range of addresses, the smallest gap that
// is large enough, neighbouring gaps being joined. What was used once stays with the process.
#include <c10/core/CPUAllocator.h>
#include <pthread.h>
#include <sys/mman.h>

#include <map>
#include <mutex>
#include <set>
#include <unordered_map>

constexpr size_t page = 4096;
constexpr size_t least = 1 << 16;  // smaller tensors are left to the allocator that was there

class Range final : public c10::Allocator {
  public:
    Range(char* start, size_t size, c10::Allocator* other)
        : start_(start), size_(size), other_(other) {
        add(start, size);
    }
    c10::DataPtr allocate(size_t n) override {
        char* p = n < least ? nullptr : take((n + page - 1) / page * page);
        if (!p) return other_->allocate(n);
        c10::profiledCPUMemoryReporter().New(p, n);
        return {p, p, &release, c10::Device(c10::DeviceType::CPU)};
    }
    c10::DeleterFnPtr raw_deleter() const override { return &release; }
    void copy_data(void* to, const void* from, size_t n) const override {
        default_copy_data(to, from, n);
    }
    std::mutex lock;

  private:
    char* start_;
    size_t size_;
    c10::Allocator* other_;
    std::unordered_map<char*, size_t> used_;
    std::map<char*, size_t> gaps_;
    std::set<std::pair<size_t, char*>> by_size_;  // the same gaps

    using Gap = std::map<char*, size_t>::iterator;

    void add(char* p, size_t n) {
        gaps_[p] = n;
        by_size_.insert({n, p});
    }
    Gap drop(Gap gap) {  // gives the next one
        by_size_.erase({gap->second, gap->first});
        return gaps_.erase(gap);
    }
    char* take(size_t n) {
        std::lock_guard<std::mutex> guard(lock);
        const auto best = by_size_.lower_bound({n, nullptr});
        if (best == by_size_.end()) return nullptr;
        const auto [size, p] = *best;
        drop(gaps_.find(p));
        if (size > n) add(p + n, size - n);
        used_[p] = n;
        return p;
    }
    void give(char* p) {
        std::lock_guard<std::mutex> guard(lock);
        size_t n = used_.at(p);
        used_.erase(p);
        Gap next = gaps_.lower_bound(p);
        if (next != gaps_.end() && p + n == next->first) {
            n += next->second;
            next = drop(next);
        }
        if (next != gaps_.begin()) {
            const Gap before = std::prev(next);
            if (before->first + before->second == p) {
                p = before->first;
                n += before->second;
                drop(before);
            }
        }
        add(p, n);
    }
    static void release(void* p);
};

static Range* range;

void Range::release(void* p) {
    char* given = static_cast<char*>(p);
    if (given < range->start_ || given >= range->start_ + range->size_)
        return range->other_->raw_deleter()(p);
    c10::profiledCPUMemoryReporter().Delete(p);
    range->give(given);
}

// Whether tensors are from now on placed in a range of `size` bytes, in huge pages if the system
// has some to give. Addresses cost nothing until they are used.
extern "C" int keep_freed_memory(size_t size) {
    constexpr int kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* start = mmap(nullptr, size, PROT_READ | PROT_WRITE, kind, -1, 0);
    if (start == MAP_FAILED) return 0;
    madvise(start, size, MADV_HUGEPAGE);
    range = new Range(static_cast<char*>(start), size, c10::GetCPUAllocator());
    const auto hold = [] { range->lock.lock(); };  // a child must not begin amid a change
    const auto let_go = [] { range->lock.unlock(); };
    pthread_atfork(hold, let_go, let_go);
    c10::SetCPUAllocator(range);
    return 1;
}
