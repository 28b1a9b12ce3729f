// Who goes on, and what is said if nobody can.
#include "scheduler.h"
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>
#include <vector>
#include "random.h"

namespace rnnkit::emulation {

Thread* self;

namespace {

// Without progress; for which a block lags behind.
constexpr uint64_t MOST_SWITCHES = 1 << 22, TERM = 1 << 12;

struct Run {
    const std::function<void()>* function;
    Thread* threads;
    size_t count, returned = 0;
    std::vector<Thread*> ready;
    std::vector<std::function<void()>> events;
    Fiber caller;
    std::string failure;
    // How this run is drawn: how rarely a thread is interrupted where it could be, and how hard it
    // is for a block to be chosen while it lags behind.
    uint64_t rarity, lag;
    uint64_t switches = 0, last_progress = 0;
};

Random source;
Run* run;

// Half of the blocks lag, other ones every term: evenly drawn, all would be at about the same step,
// and what goes wrong if one is far ahead would not show.
bool lags(const Thread* thread) {
    const uint64_t term = run->switches / TERM + 1;
    const Block& block = *thread->block;
    return uint64_t(block.x * 31 + block.y + 1) * Random::SCATTER * term >> 63;
}

Thread* any() {
    Thread* found = run->ready[source.below(run->ready.size())];
    for (uint64_t k = 0; k < run->lag && lags(found); ++k)
        found = run->ready[source.below(run->ready.size())];
    return found;
}

void happen() {
    std::swap(run->events[source.below(run->events.size())], run->events.back());
    const auto event = std::move(run->events.back());
    run->events.pop_back();
    progress();
    event();
}

std::string name(const Thread& thread) {
    return "thread " + std::to_string(thread.index) + " of block ("
           + std::to_string(thread.block->x) + ", " + std::to_string(thread.block->y) + ")";
}

// Who waits where.
std::string situation() {
    std::map<std::string, std::pair<int, const Thread*>> places;
    for (Thread* thread : run->ready) thread->where = "no barrier";
    for (size_t k = 0; k < run->count; ++k) {
        if (!run->threads[k].where) continue;
        auto& [count, first] = places[run->threads[k].where];
        if (count++ == 0) first = run->threads + k;
    }
    std::string text;
    for (const auto& [where, found] : places)
        text += (text.empty() ? "" : "; ") + std::to_string(found.first) + " at " + where
                + ", the first is " + name(*found.second);
    return text;
}

void switch_to(Thread* next) {
    if (++run->switches > run->last_progress + MOST_SWITCHES)
        fail("deadlock: the threads that go on wait for what nobody does: " + situation());
    if (!run->events.empty() && source.below(4) == 0) happen();
    if (next != self) switch_fiber(std::exchange(self, next)->fiber, next->fiber);
}

void add_ready(Thread* thread) {
    thread->where = nullptr;
    thread->place = run->ready.size();
    run->ready.push_back(thread);
}

// Another goes on; this one does not before it is ready again.
void leave() {
    run->ready[self->place] = run->ready.back();
    run->ready[self->place]->place = self->place;
    run->ready.pop_back();
    while (run->ready.empty() && !run->events.empty()) happen();
    if (run->ready.empty()) fail("deadlock: " + situation());
    switch_to(any());
}

// The group lacks this thread from now on.
void return_from(Group& group) {
    ++group.returned;
    if (group.arrived > 0)
        fail(name(*self) + " returned, but others wait for it at " + group.where);
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

void seed(uint64_t value) { source = Random(value); }

void may_switch() {
    if ((source.draw() & run->rarity) == 0) must_switch();
}

void must_switch() { switch_to(any()); }

void progress() { run->last_progress = run->switches; }

void meet(Group& group, const char* where, const void* operand, Together compute) {
    self->operand = operand;
    if (group.returned > 0)
        fail(name(*self) + " waits at " + where + " for threads that have returned");
    if (group.arrived > 0 && std::strcmp(group.where, where) != 0)
        fail(name(*self) + " is at " + where + ", but others wait for it at " + group.where);
    group.where = where;
    if (++group.arrived < group.count) {
        self->where = where;
        return leave();
    }
    if (compute) compute(group);
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
    here.lag = 2 * source.below(4);
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
