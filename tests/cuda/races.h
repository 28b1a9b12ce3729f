// Races among the threads of a grid: two touch the same bytes, one of them writes, and nothing that
// a GPU promises puts one before the other. It does not matter which came first in this run.
//
// Reads of shared memory that nobody wrote, too, and what touches the memory of no tensor.
//
// Sources that are compiled with -fsanitize=thread tell of all they load and store; no others are
// watched. What orders threads is told here. Each thread has a clock of every thread's time: what
// happened up to then came before (Flanagan and Freund, "FastTrack", PLDI 2009).
#pragma once
#include <cstddef>
#include <cstdint>
#include "scheduler.h"

extern "C" {
// Launches may touch these from here on, and nothing else; or all, if there are none.
void emulation_tensors(const char* const* memory, const size_t* bytes, int count);
}

namespace rnnkit::emulation {

// A run begins and ends; of shared memory, where what nobody wrote must not be read.
void watch(const Thread* threads, size_t count, const char* shared, size_t shared_bytes);
void watch_no_longer();

// All threads of a group have met at a barrier.
void order(const Group& group);

// What the thread did comes before what those do who find that it passed here.
void release(const void* place);
void acquire(const void* place);

// Of a barrier that counts: its phase goes on until all have arrived and all bytes have come.
void arrive(const void* barrier);
void store_asynchronously(const char* to, size_t bytes, const void* barrier);
void end_phase(const void* barrier);

}  // namespace rnnkit::emulation
