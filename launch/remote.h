// What `client` and `chat` share: the server's address, and its refusals as the contract prints them.
#pragma once
#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "kernels/base/error.h"

namespace tandem {

struct RemoteOptions {
  std::string address = "127.0.0.1:8001";
  double connect_seconds = 10, deadline_seconds = 0;
};
void add_options(CLI::App& app, RemoteOptions& options);
void check_address(const RemoteOptions& options);  // Errors: Code::invalid_argument: not HOST:PORT

// Runs `call`; an Error out of it is the server's: `error: <CODE>: <message>` on stderr, exit code 2 for INVALID_ARGUMENT, else 1.
int report_status(const std::function<int()>& call);
void print_status(const Error& error);
int status_exit_code(const Error& error);

}  // namespace tandem
