// Which of this host's addresses another host may dial, and which of another host's addresses can be dialled from here. Any thread.
#pragma once
#include <string>
#include <vector>

namespace tandem {

// IPv4 addresses of the interfaces that are up, loopback left out.
std::vector<std::string> host_addresses();

// "HOST:PORT" of a listener, as others should dial it: a wildcard host (0.0.0.0) becomes all of this host's addresses, "A:PORT,B:PORT".
std::string dial_addresses(const std::string& listening);

// The first of such a list that takes a connection; a single address is returned as it is. Addresses that this host has, too, are
// another host's only when the list holds others (bridges have the same address everywhere). Errors: unavailable.
std::string reachable_address(const std::string& addresses, double seconds);

}  // namespace tandem
