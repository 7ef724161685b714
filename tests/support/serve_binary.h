// A real server for tests of clients. It listens on a port of its own and ends with the object.
#pragma once
#include <chrono>
#include <csignal>
#include <sstream>
#include <thread>

#include "tests/support/run_binary.h"

namespace tandem {

class Served {
 public:
  explicit Served(const std::string& model, const std::string& options = "") {
    const std::string command = "exec " TANDEM_BINARY " serve " + model + " --listen 127.0.0.1:0 " + options + " >" + (folder_ / "out") + " 2>" + (folder_ / "err");
    process_ = fork();
    if (process_ == 0) {
      execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
      _exit(127);
    }
    for (int i = 0; i < 600 && address_.empty(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      std::istringstream said(read_whole(folder_ / "err"));
      constexpr std::string_view kSays = "listening on ";
      for (std::string line; std::getline(said, line);) {
        if (line.starts_with(kSays) && !said.eof()) address_ = line.substr(kSays.size());
      }
    }
  }
  ~Served() {
    kill(process_, SIGTERM);
    int status = 0;
    waitpid(process_, &status, 0);
  }
  const std::string& address() const { return address_; }
  std::string said() const { return read_whole(folder_ / "err"); }

 private:
  TemporaryFolder folder_;
  pid_t process_ = -1;
  std::string address_;
};

}  // namespace tandem
