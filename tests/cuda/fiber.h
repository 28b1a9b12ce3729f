// A stack of its own, on which a function runs until it lets another fiber go on.
#pragma once
#include <cstddef>
#include <cstdint>

namespace rnnkit::emulation {

// Not a power of two, or what neighbours use would fall on the same lines of the cache.
constexpr size_t STACK_BYTES = (64 << 10) + 9 * 64;

// So many, one after the other, and kept for the next call, which makes the old ones invalid.
char* stacks(size_t count);

}  // namespace rnnkit::emulation

// The system's contexts save the signal mask by a call of the kernel, at ten times the cost.
#if defined(__x86_64__) && defined(__ELF__) && !defined(EMULATION_UCONTEXT)

namespace rnnkit::emulation {

struct Fiber {
    void* stack_pointer;
};

extern "C" void rnnkit_emulation_switch(Fiber* from, const Fiber* to);
inline void switch_fiber(Fiber& from, const Fiber& to) { rnnkit_emulation_switch(&from, &to); }

// `function` never returns.
inline void make_fiber(Fiber& fiber, char* stack, void (*function)()) {
    // What rnnkit_emulation_switch takes off: six registers and where it returns to, above which
    // is the place of the return address of a function that begins.
    void** top = reinterpret_cast<void**>((uintptr_t(stack) + STACK_BYTES) & ~uintptr_t(15)) - 8;
    for (int k = 0; k < 8; ++k) top[k] = nullptr;
    top[6] = reinterpret_cast<void*>(function);
    fiber.stack_pointer = top;
}

}  // namespace rnnkit::emulation

#else
#include <ucontext.h>

namespace rnnkit::emulation {

struct Fiber {
    ucontext_t context;
};

inline void switch_fiber(Fiber& from, const Fiber& to) { swapcontext(&from.context, &to.context); }

inline void make_fiber(Fiber& fiber, char* stack, void (*function)()) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, function, 0);
}

}  // namespace rnnkit::emulation

#endif
