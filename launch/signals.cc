#include "launch/signals.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <thread>

namespace tandem {
namespace {

std::atomic<bool> g_may_report{true};
bool g_held = false;  // the main thread's

extern "C" void on_bus_error(int) {
  constexpr char kLine[] = "error: file: shrank while it was read (must not change while in use)\n";
  (void)!write(2, kLine, sizeof kLine - 1);
  _exit(2);
}

sigset_t stop_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}

// One thread waits for the signals, so that what they start runs as ordinary code.
void wait_on_thread(std::initializer_list<int> signals, std::function<void(int)> handle) {
  sigset_t set;
  sigemptyset(&set);
  for (int signal : signals) sigaddset(&set, signal);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);  // inherited by every thread made after it
  std::thread([set, handle = std::move(handle)] {
    for (;;) {
      int signal = 0;
      if (sigwait(&set, &signal) == 0) handle(signal);
    }
  }).detach();
}

}  // namespace

void guard_mapped_files() {
  struct sigaction action;
  std::memset(&action, 0, sizeof action);
  action.sa_handler = on_bus_error;
  sigaction(SIGBUS, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
}

void hold_stop_signals() {
  const sigset_t set = stop_signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  g_held = true;
}

void release_stop_signals() {
  if (!g_held) return;
  const sigset_t set = stop_signals();
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
  g_held = false;
}

void on_stop_signal(std::function<void()> first) {
  wait_on_thread({SIGINT, SIGTERM}, [first = std::move(first), count = 0](int) mutable {
    if (++count > 1) _exit(1);
    std::thread(first).detach();
  });
}

void on_interrupt_signal(std::function<void()> on_interrupt) {
  wait_on_thread({SIGINT}, [on_interrupt = std::move(on_interrupt)](int) { on_interrupt(); });
}

bool may_report_errors() { return g_may_report; }
void set_error_reporting(bool on) { g_may_report = on; }

}  // namespace tandem
