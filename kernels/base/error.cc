#include "kernels/base/error.h"

namespace tandem {

std::string_view name(Code code) {
  switch (code) {
    case Code::invalid_argument: return "INVALID_ARGUMENT";
    case Code::not_found: return "NOT_FOUND";
    case Code::already_exists: return "ALREADY_EXISTS";
    case Code::failed_precondition: return "FAILED_PRECONDITION";
    case Code::resource_exhausted: return "RESOURCE_EXHAUSTED";
    case Code::unavailable: return "UNAVAILABLE";
    case Code::deadline_exceeded: return "DEADLINE_EXCEEDED";
    case Code::cancelled: return "CANCELLED";
    case Code::aborted: return "ABORTED";
    case Code::unauthenticated: return "UNAUTHENTICATED";
    case Code::internal: return "INTERNAL";
  }
  return "INTERNAL";
}

Error::Error(Code c, std::string w, std::string m) : code(c), where(std::move(w)), message(std::move(m)) {
  line_ = where.empty() ? message : where + ": " + message;
  for (char& ch : line_) {
    if (static_cast<unsigned char>(ch) < 0x20 || ch == 0x7f) ch = ' ';  // one plain line, whatever a hostile file put into a name
  }
}

void fail(Code code, std::string where, std::string message) { throw Error(code, std::move(where), std::move(message)); }

}  // namespace tandem
