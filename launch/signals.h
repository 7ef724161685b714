// What a process does about signals. Called from main and from commands that serve.
#pragma once
#include <functional>

namespace tandem {

// A mapped or read file that shrinks raises SIGBUS: one error line, exit 2.
void guard_mapped_files();

// SIGINT and SIGTERM wait from now on, for this thread and all that it makes, until on_stop_signal() takes them. A signal goes to any thread
// that does not block it, so a command that serves calls this before anything starts threads (MPI, gRPC, the engine).
void hold_stop_signals();
void release_stop_signals();  // and act as usual again; without hold_stop_signals() nothing happens

// From now on SIGINT and SIGTERM call `first` once, on a thread of its own; a second signal ends the process at once (exit 1).
void on_stop_signal(std::function<void()> first);
// SIGINT calls `on_interrupt` on a thread of its own every time (chat: stops the answer, not the program).
void on_interrupt_signal(std::function<void()> on_interrupt);

// Under mpirun only the lowest failing rank prints; a rank that is not the one stays silent.
bool may_report_errors();
void set_error_reporting(bool on);

}  // namespace tandem
