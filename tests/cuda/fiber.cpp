// Where fibers live, and how one goes over to another.
#include "fiber.h"
#include <sys/mman.h>
#include <cstdlib>

namespace rnnkit::emulation {

char* stacks(size_t count) {
    static void* mapped = nullptr;
    static size_t room = 0;
    if (count > room) {
        if (room > 0) munmap(mapped, room * STACK_BYTES);
        mapped = mmap(nullptr, count * STACK_BYTES, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (mapped == MAP_FAILED) std::abort();
        room = count;
    }
    return static_cast<char*>(mapped);
}

}  // namespace rnnkit::emulation

#if defined(__x86_64__) && defined(__ELF__) && !defined(EMULATION_UCONTEXT)
// Swaps the stack and the registers that a function must leave as they were.
asm(R"(
    .text
    .globl rnnkit_emulation_switch
    .hidden rnnkit_emulation_switch
    .type rnnkit_emulation_switch, @function
rnnkit_emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq (%rsi), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size rnnkit_emulation_switch, . - rnnkit_emulation_switch
)");
#endif
