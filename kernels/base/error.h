// The one exception of the project. `where` names the file, option or field at fault, `message` says what is wrong and, in
// parentheses, what would be right; launch prints them as one line `error: <where>: <message>`. The codes are those of the wire, so
// the border in rpc/convert is one switch. Thread-safe: values only.
#pragma once
#include <cstdint>
#include <exception>
#include <string>
#include <string_view>

namespace tandem {

enum class Code : uint8_t {
  invalid_argument,     // what the user gave is wrong: exit 2
  not_found,            // no such file, model, request: exit 2
  already_exists,       // request id in flight
  failed_precondition,  // right in itself, not here or now
  resource_exhausted,   // queue, pages, memory or disk full
  unavailable,          // loading, draining, a stage lost: try again
  deadline_exceeded,
  cancelled,
  aborted,  // by an operator
  unauthenticated,
  internal,  // a bug
};

std::string_view name(Code code);  // "INVALID_ARGUMENT", ... as gRPC spells it

class Error : public std::exception {
 public:
  Error(Code code, std::string where, std::string message);
  const char* what() const noexcept override { return line_.c_str(); }  // "<where>: <message>"
  Code code;
  std::string where, message;

 private:
  std::string line_;
};

[[noreturn]] void fail(Code code, std::string where, std::string message);
[[noreturn]] inline void bad_input(std::string where, std::string message) {
  fail(Code::invalid_argument, std::move(where), std::move(message));
}

}  // namespace tandem
