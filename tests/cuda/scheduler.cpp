// Who goes on, and what is said if nobody can.
#include "scheduler.h"
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>
#include <vector>
#include "races.h"
#include "random.h"

namespace rnnkit::emulation {

Thread* self;

namespace {

// Without progress.
constexpr uint64_t MOST_SWITCHES = 1 << 22, MOST_OF_A_THREAD = 1 << 12;

struct Run {
    const std::function<void()>* function;
    Thread* threads;
    size_t count, returned = 0;
    std::vector<Thread*> ready[2];  // those that are not slow; those that are
    std::vector<std::function<void()>> events;
    Fiber caller;
    std::string failure;
    // How this run is drawn: how rarely a thread is interrupted where it could be, and how rarely a
    // slow one goes on where another could. Evenly drawn, all would be at about the same step, and
    // what goes wrong if a block or warp is far ahead, or behind, would not show.
    uint64_t rarity, patience;
    uint64_t switches = 0, last_progress = 0;
};

Random source;
Run* run;

void happen() {
    std::swap(run->events[source.below(run->events.size())], run->events.back());
    const auto event = std::move(run->events.back());
    run->events.pop_back();
    progress();
    event();
}

// Null if nobody can go on. What is sent to a slow block may come before it goes on.
Thread* any() {
    auto& [others, slow] = run->ready;
    while (others.empty() && !run->events.empty())
        if (slow.empty() || source.below(run->patience) > 0) happen();
        else break;
    if (others.empty() && slow.empty()) return nullptr;
    const bool hold = slow.empty() || (!others.empty() && source.below(run->patience) > 0);
    const auto& from = hold ? others : slow;
    return from[source.below(from.size())];
}

// Nobody, a block, or about half of the blocks or of the warps.
void choose_slow(Thread* threads, size_t count) {
    enum { NOBODY, BLOCK, BLOCKS, WARPS, KINDS };
    const uint64_t kind = source.below(KINDS);
    const Block* const one = threads[source.below(count)].block;
    bool slow = false;
    for (Thread* each = threads; each < threads + count; ++each) {
        const bool first = kind == BLOCKS ? each->index == 0 : each->index % 32 == 0;
        if (kind == BLOCK) slow = each->block == one;
        else if (kind != NOBODY && first) slow = source.below(2);
        each->slow = slow;
    }
}

// Who waits where.
std::string situation() {
    std::map<std::string, std::pair<int, const Thread*>> places;
    for (const auto& threads : run->ready)
        for (Thread* thread : threads) thread->where = "no barrier";
    for (size_t k = 0; k < run->count; ++k) {
        if (!run->threads[k].where) continue;
        auto& [count, first] = places[run->threads[k].where];
        if (count++ == 0) first = run->threads + k;
    }
    std::string text;
    for (const auto& [where, found] : places)
        text += (text.empty() ? "" : "; ") + std::to_string(found.first) + " at " + where
                + ", the first is " + describe(*found.second);
    return text;
}

void switch_to(Thread* next) {
    // The more threads there are, the longer one that is slow may wait for its turn.
    const uint64_t most = std::max(MOST_SWITCHES, MOST_OF_A_THREAD * run->count);
    if (++run->switches > run->last_progress + most)
        fail("deadlock: the threads that go on wait for what nobody does: " + situation());
    if (!run->events.empty() && source.below(4) == 0) happen();
    if (next != self) switch_fiber(std::exchange(self, next)->fiber, next->fiber);
}

void add_ready(Thread* thread) {
    thread->where = nullptr;
    auto& ready = run->ready[thread->slow];
    thread->place = ready.size();
    ready.push_back(thread);
}

// Another goes on; this one does not before it is ready again.
void leave() {
    auto& ready = run->ready[self->slow];
    ready[self->place] = ready.back();
    ready[self->place]->place = self->place;
    ready.pop_back();
    Thread* const next = any();
    if (!next) fail("deadlock: " + situation());
    switch_to(next);
}

// The group lacks this thread from now on.
void return_from(Group& group) {
    ++group.returned;
    if (group.arrived > 0)
        fail(describe(*self) + " returned, but others wait for it at " + group.where);
}

void enter() {
    (*run->function)();
    for (Group* group : {self->warp, &self->block->group, self->cluster}) return_from(*group);
    if (*self->stack_end != self) fail("a thread needs a larger stack");
    progress();
    if (++run->returned < run->count) leave();
    while (!run->events.empty()) happen();
    switch_fiber(self->fiber, run->caller);
}

}  // namespace

std::string describe(const Thread& thread) {
    return "thread " + std::to_string(thread.index) + " of block ("
           + std::to_string(thread.block->x) + ", " + std::to_string(thread.block->y) + ")";
}

void seed(uint64_t value) { source = Random(value); }

void may_switch() {
    if ((source.draw() & run->rarity) == 0) must_switch();
}

void must_switch() { switch_to(any()); }

void progress() { run->last_progress = run->switches; }

void meet(Group& group, const char* where, const void* operand, Together compute) {
    self->operand = operand;
    if (group.returned > 0)
        fail(describe(*self) + " waits at " + where + " for threads that have returned");
    if (group.arrived > 0 && std::strcmp(group.where, where) != 0)
        fail(describe(*self) + " is at " + where + ", but others wait for it at " + group.where);
    group.where = where;
    if (++group.arrived < group.count) {
        self->where = where;
        return leave();
    }
    if (compute) compute(group);
    else order(group);
    group.arrived = 0;
    progress();
    for (int k = 0; k < group.count; ++k)
        if (group.threads + k != self) add_ready(group.threads + k);
    may_switch();
}

void wait(const char* where, const void* operand) {
    self->where = where;
    self->operand = operand;
    leave();
}

void wake(Group& group, const char* where, const void* operand) {
    for (Thread* each = group.threads; each < group.threads + group.count; ++each)
        if (each->where == where && each->operand == operand) add_ready(each);
}

void later(std::function<void()> event) { run->events.push_back(std::move(event)); }

void fail(const std::string& description) {
    run->failure = description;
    switch_fiber(self->fiber, run->caller);
    std::abort();
}

std::string schedule(Thread* threads, size_t count, const std::function<void()>& function) {
    Run here;
    here.function = &function;
    here.threads = threads;
    here.count = count;
    run = &here;
    here.rarity = (1 << source.below(7)) - 1;
    here.patience = 2 << source.below(4);
    choose_slow(threads, count);
    char* stack = stacks(count);
    for (Thread* each = threads; each < threads + count; ++each, stack += STACK_BYTES) {
        make_fiber(each->fiber, stack, enter);
        each->stack_end = reinterpret_cast<Thread**>(stack);
        *each->stack_end = each;
        add_ready(each);
    }
    self = any();
    switch_fiber(here.caller, self->fiber);
    self = nullptr;
    run = nullptr;
    return here.failure;
}

}  // namespace rnnkit::emulation
