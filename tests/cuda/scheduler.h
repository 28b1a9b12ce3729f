// The threads of a grid, each a fiber, of which one runs at a time: which one is drawn at random
// wherever one waits for others, or sees or shows what passes between them.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include "fiber.h"

namespace rnnkit::emulation {

struct Thread;

// Threads that wait for each other: a warp, a block, a cluster.
struct Group {
    Thread* threads;
    int count;
    int arrived = 0, returned = 0;
    const char* where = nullptr;
};

struct Block {
    int x, y;
    char* shared;
    Group group;
};

struct Thread {
    Fiber fiber;
    int index;
    Block* block;
    Group *warp, *cluster;
    Thread** stack_end;           // holds the thread, unless the stack was too small
    bool slow = false;
    size_t place = 0;             // among those that can go on, of the slow or the others
    const char* where = nullptr;  // it waits, unless it can go on
    const void* operand = nullptr;
};

// The one that runs.
extern Thread* self;

// What is drawn from here on.
void seed(uint64_t value);

// Where another thread may go on; where one must, since this one waits for what it will do.
void may_switch();
void must_switch();

// Something happened that others may wait for. If for very long nothing does, nothing will.
void progress();

// Waits for all threads of a group, the last of which computes for all, from their operands; or,
// where there is nothing to compute, as at a barrier, which orders what they do before and after.
using Together = void (*)(Group&);
void meet(Group& group, const char* where, const void* operand = nullptr,
          Together compute = nullptr);

// Waits until woken by one who names the same place and operand.
void wait(const char* where, const void* operand);
void wake(Group& group, const char* where, const void* operand);

// The event happens sometime.
void later(std::function<void()> event);

std::string describe(const Thread& thread);

// Ends the run, which returns this description.
[[noreturn]] void fail(const std::string& description);

// Runs a function as every one of these threads; if one fails, the others stay where they are.
// Returns what went wrong, or nothing.
std::string schedule(Thread* threads, size_t count, const std::function<void()>& function);

}  // namespace rnnkit::emulation
