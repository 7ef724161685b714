#include "launch/remote.h"

#include <cstdio>

#include "launch/options.h"
#include "rpc/listen_address.h"

namespace tandem {

void add_options(CLI::App& app, RemoteOptions& o) {
  app.add_option("HOST:PORT", o.address, "the server")->capture_default_str();
  app.add_option("--connect-seconds", o.connect_seconds, "how long to wait for the server")->capture_default_str()->check(between(0, 1e6));
  app.add_option("--deadline-seconds", o.deadline_seconds, "give an answer up after this (default: a day)")->check(between(0, 1e6));
}

void check_address(const RemoteOptions& o) { (void)split_address(o.address, "HOST:PORT"); }

void print_status(const Error& error) {
  const std::string code(name(error.code));
  std::fprintf(stderr, "error: %s%s\n", error.where == code ? "" : (code + ": ").c_str(), error.what());  // a status of the server names its code
}

int status_exit_code(const Error& error) { return error.code == Code::invalid_argument ? 2 : 1; }

int report_status(const std::function<int()>& call) {
  try {
    return call();
  } catch (const Error& error) {
    print_status(error);
    return status_exit_code(error);
  }
}

}  // namespace tandem
