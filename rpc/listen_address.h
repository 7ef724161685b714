// "HOST:PORT" checked before gRPC gets it: gRPC does not say why it cannot listen, and is content when one of several addresses is free.
#pragma once
#include <string>

namespace tandem {

// Errors (where = `where`): invalid_argument (not HOST:PORT, unknown host), failed_precondition (port in use, not allowed).
void check_listen_address(const std::string& address, const std::string& where);

struct HostPort {
  std::string host;
  int port = 0;
};
HostPort split_address(const std::string& address, const std::string& where);  // [::1]:80 keeps its brackets in host

}  // namespace tandem
