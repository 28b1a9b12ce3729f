// What -fsanitize=thread calls, and what it is checked against.
#include "races.h"
#include <algorithm>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

namespace rnnkit::emulation {

namespace {

// Times of threads, past the end zero. After the threads come barriers, as which what is stored
// asynchronously happens: their time is the phase.
using Clock = std::vector<uint32_t>;

struct Moment {
    uint32_t who, time;  // never, at time 0

    bool before(const Clock& clock) const {
        return time == 0 || (who < clock.size() && time <= clock[who]);
    }
};

void join(Clock& clock, const Clock& other) {
    if (clock.size() < other.size()) clock.resize(other.size());
    for (size_t k = 0; k < other.size(); ++k) clock[k] = std::max(clock[k], other[k]);
}

struct Barrier {
    uint32_t who, phase = 1;
    Clock coming;  // of all who arrived or stored something in this phase
};

// What was done at a place, and how much of that each thread knows.
struct Passed {
    Clock clock;
    uint32_t changes = 0;
    std::vector<uint32_t> known;

    void change(const Clock& clock_then) {
        join(clock, clock_then);
        ++changes;
    }
};

struct Read {
    Moment moment;
    uint32_t next;
};

// As few as a thread stores at once, in bfloat16.
constexpr size_t CELL_BYTES = 2, PAGE_CELLS = 2048;

struct Cell {
    Moment write = {0, 0};
    uint32_t reads = 0;  // a list of them, each unordered with the others; 0 is its end
};

struct Watch {
    const Thread* threads;
    std::vector<Clock> clocks;
    const char *shared, *shared_end, *own, *own_end;  // threads' own stacks
    const char* caller;
    std::unordered_map<const void*, Passed> passed;
    std::unordered_map<const void*, Barrier> barriers;
    std::unordered_map<size_t, std::unique_ptr<Cell[]>> pages;
    std::vector<Read> reads = {{}};
    uint32_t free = 0;  // a list of reads

    bool shares(const char* at) const { return at >= shared && at < shared_end; }

    Cell* page(size_t cell) {
        auto& found = pages[cell / PAGE_CELLS];
        if (!found) found = std::make_unique<Cell[]>(PAGE_CELLS);
        return found.get();
    }

    Clock& clock() { return clocks[self - threads]; }
    void tick() { ++clock()[self - threads]; }

    Barrier& barrier(const void* place) {
        const uint32_t who = uint32_t(clocks.size() + barriers.size());
        return barriers.try_emplace(place, Barrier{who, 1, {}}).first->second;
    }

    uint32_t add(Moment moment, uint32_t next) {
        uint32_t at = free;
        if (at != 0) free = reads[at].next;
        else at = uint32_t(reads.size()), reads.emplace_back();
        reads[at] = {moment, next};
        return at;
    }
    uint32_t remove(uint32_t at) {
        const uint32_t next = reads[at].next;
        reads[at].next = free;
        free = at;
        return next;
    }
};

// Sources that tell are among those of this program.
bool told = false;
// Global memory that may be touched, where somebody says so: ends by beginnings.
std::map<const char*, const char*> tensors;
std::unique_ptr<Watch> watched;

std::string name(Moment moment) {
    if (moment.who < watched->clocks.size()) return describe(watched->threads[moment.who]);
    return "an asynchronous store";
}

std::string name(const char* at) {
    if (!watched->shares(at)) return "global memory";
    const Block* block = nullptr;
    for (size_t k = 0; k < watched->clocks.size(); ++k)
        if (watched->threads[k].block->shared <= at) block = watched->threads[k].block;
    return "byte " + std::to_string(at - block->shared) + " of the shared memory of block ("
           + std::to_string(block->x) + ", " + std::to_string(block->y) + ")";
}

[[noreturn]] void report(const char* at, Moment now, const char* what, Moment other) {
    fail("race: " + name(now) + what + name(other) + ": " + name(at));
}

void write(const char* at, Cell& cell, Moment moment, const Clock& clock) {
    if (!cell.write.before(clock)) report(at, moment, " writes what is written by ", cell.write);
    for (; cell.reads != 0; cell.reads = watched->remove(cell.reads)) {
        const Moment read = watched->reads[cell.reads].moment;
        if (!read.before(clock)) report(at, moment, " writes what is read by ", read);
    }
    cell.write = moment;
}

// Reads that came before this one need not be remembered: who comes after it comes after them.
void read(const char* at, Cell& cell, Moment moment, const Clock& clock) {
    if (cell.write.time == 0 && watched->shares(at))
        fail(name(moment) + " reads what nobody wrote: " + name(at));
    if (!cell.write.before(clock)) report(at, moment, " reads what is written by ", cell.write);
    uint32_t* from = &cell.reads;
    while (*from != 0)
        if (watched->reads[*from].moment.before(clock)) *from = watched->remove(*from);
        else from = &watched->reads[*from].next;
    cell.reads = watched->add(moment, cell.reads);
}

bool is_somebodys(const char* at, size_t bytes) {
    // What launch() was given is on the stack of who called it.
    constexpr size_t near = 1 << 16;
    if (size_t(at - watched->caller) < near || watched->shares(at)) return true;
    auto after = tensors.upper_bound(at);
    return tensors.empty() || (after != tensors.begin() && at + bytes <= (--after)->second);
}

template <class Touch>
void touch(const char* at, size_t bytes, Moment moment, const Clock& clock, const Touch& how) {
    const size_t first = size_t(at) / CELL_BYTES, last = (size_t(at) + bytes - 1) / CELL_BYTES;
    Cell* page = nullptr;
    for (size_t k = first; k <= last; ++k) {
        if (!page || k % PAGE_CELLS == 0) page = watched->page(k);
        how(reinterpret_cast<const char*>(k * CELL_BYTES), page[k % PAGE_CELLS], moment, clock);
    }
}

template <class Touch> void touch(const void* place, size_t bytes, const Touch& how) {
    const char* const at = static_cast<const char*>(place);
    if (!watched || !self || (at >= watched->own && at < watched->own_end)) return;
    if (!is_somebodys(at, bytes)) fail(describe(*self) + " touches memory of no tensor");
    const Clock& clock = watched->clock();
    const uint32_t who = uint32_t(self - watched->threads);
    touch(at, bytes, {who, clock[who]}, clock, how);
}

}  // namespace

void watch(const Thread* threads, size_t count, const char* shared, size_t shared_bytes) {
    if (!told) return;
    watched = std::make_unique<Watch>();
    watched->threads = threads;
    watched->clocks.assign(count, Clock(count));
    for (size_t k = 0; k < count; ++k) watched->clocks[k][k] = 1;
    watched->shared = shared;
    watched->shared_end = shared + shared_bytes;
    watched->caller = static_cast<const char*>(__builtin_frame_address(0));
    watched->own = stacks(count);
    watched->own_end = watched->own + count * STACK_BYTES;
}

void watch_no_longer() { watched.reset(); }

void order(const Group& group) {
    if (!watched) return;
    Clock all;
    const auto first = watched->clocks.begin() + (group.threads - watched->threads);
    std::for_each(first, first + group.count, [&](const Clock& clock) { join(all, clock); });
    std::fill(first, first + group.count, all);
    for (int k = 0; k < group.count; ++k)
        ++first[k][group.threads + k - watched->threads];
}

void release(const void* place) {
    if (!watched) return;
    watched->passed[place].change(watched->clock());
    watched->tick();
}

// Threads look again and again until there is something new.
void acquire(const void* place) {
    if (!watched) return;
    Passed& passed = watched->passed[place];
    passed.known.resize(watched->clocks.size());
    uint32_t& known = passed.known[self - watched->threads];
    if (known != passed.changes) join(watched->clock(), passed.clock);
    known = passed.changes;
}

void arrive(const void* barrier) {
    if (!watched) return;
    join(watched->barrier(barrier).coming, watched->clock());
    watched->tick();
}

void store_asynchronously(const char* to, size_t bytes, const void* barrier) {
    if (!watched) return;
    const Barrier& by = watched->barrier(barrier);
    touch(to, bytes, {by.who, by.phase}, watched->clock(), write);
    arrive(barrier);
}

void end_phase(const void* barrier) {
    if (!watched) return;
    Barrier& over = watched->barrier(barrier);
    if (over.coming.size() <= over.who) over.coming.resize(over.who + 1);
    over.coming[over.who] = over.phase++;
    watched->passed[barrier].change(over.coming);
    over.coming.clear();
}

}  // namespace rnnkit::emulation

using namespace rnnkit::emulation;

extern "C" {

void emulation_tensors(const char* const* memory, const size_t* bytes, int count) {
    tensors.clear();
    for (int k = 0; k < count; ++k) {
        const char*& end = tensors[memory[k]];
        end = std::max(end, memory[k] + bytes[k]);
    }
}

void __tsan_init() { told = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

#define RNNKIT_TOLD(bytes)                                                                 \
    void __tsan_read##bytes(void* place) { touch(place, bytes, read); }                    \
    void __tsan_write##bytes(void* place) { touch(place, bytes, write); }                  \
    void __tsan_unaligned_read##bytes(void* place) { touch(place, bytes, read); }          \
    void __tsan_unaligned_write##bytes(void* place) { touch(place, bytes, write); }
RNNKIT_TOLD(1)
RNNKIT_TOLD(2)
RNNKIT_TOLD(4)
RNNKIT_TOLD(8)
RNNKIT_TOLD(16)
void __tsan_read_range(void* place, size_t bytes) { touch(place, bytes, read); }
void __tsan_write_range(void* place, size_t bytes) { touch(place, bytes, write); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

}
