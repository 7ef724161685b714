#include "launch/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "kernels/base/error.h"

namespace tandem {

bool is_terminal(std::FILE* stream) { return isatty(fileno(stream)) == 1; }

int columns(std::FILE* stream) {
  winsize size{};
  if (ioctl(fileno(stream), TIOCGWINSZ, &size) == 0 && size.ws_col >= 20) return size.ws_col;
  return 100;
}

void write_now(std::FILE* stream, std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stream) == text.size() && std::fflush(stream) == 0) return;
  fail(Code::failed_precondition, stream == stdout ? "standard output" : "output", std::string("cannot be written (") + std::strerror(errno) + ")");
}

void show_now(std::FILE* stream, std::string_view text) {
  if (!is_terminal(stream)) return write_now(stream, text);
  std::string shown;
  for (const char c : text) {
    const auto code = static_cast<unsigned char>(c);
    if ((code < 0x20 && c != '\n' && c != '\t') || code == 0x7f) {
      shown += "\xEF\xBF\xBD";
    } else {
      shown += c;
    }
  }
  write_now(stream, shown);
}

}  // namespace tandem
