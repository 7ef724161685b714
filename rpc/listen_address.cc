#include "rpc/listen_address.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>

#include "kernels/base/error.h"

namespace tandem {

HostPort split_address(const std::string& address, const std::string& where) {
  const size_t colon = address.rfind(':');
  HostPort out;
  if (colon != std::string::npos) {
    out.host = address.substr(0, colon);
    const char* end = address.data() + address.size();
    const auto [last, error] = std::from_chars(address.data() + colon + 1, end, out.port);
    const bool bracketed = out.host.size() > 2 && out.host.front() == '[' && out.host.back() == ']';
    const bool plain = out.host.find(':') == std::string::npos;
    if (error == std::errc() && last == end && out.port >= 0 && out.port <= 65535 && !out.host.empty() && (bracketed || plain)) return out;
  }
  bad_input(where, "'" + address + "' is not an address (HOST:PORT, such as 127.0.0.1:8001)");
}

void check_listen_address(const std::string& address, const std::string& where) {
  HostPort asked = split_address(address, where);
  if (asked.host.front() == '[') asked.host = asked.host.substr(1, asked.host.size() - 2);
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  if (const int error = getaddrinfo(asked.host.c_str(), std::to_string(asked.port).c_str(), &hints, &found); error != 0) {
    bad_input(where, "'" + asked.host + "' is no host of this machine (" + gai_strerror(error) + "; a name or address such as 127.0.0.1)");
  }
  int failed = 0;
  bool any = false;
  for (const addrinfo* at = found; at != nullptr && failed == 0; at = at->ai_next) {
    const int fd = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) continue;  // a family that this machine lacks
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, at->ai_addr, at->ai_addrlen) == 0 && listen(fd, 1) == 0) {
      any = true;
    } else if (errno != EADDRNOTAVAIL) {
      failed = errno;
    }
    close(fd);
  }
  freeaddrinfo(found);
  if (failed == EADDRINUSE)
    fail(Code::failed_precondition, where, "port " + std::to_string(asked.port) + " is in use (another port, or 0 to pick one)");
  if (failed != 0) fail(Code::failed_precondition, where, "cannot listen on " + address + ": " + std::strerror(failed));
  if (!any) bad_input(where, "'" + asked.host + "' is no address of this machine (one of its own, such as 127.0.0.1)");
}

}  // namespace tandem
