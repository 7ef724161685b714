#include "runtime/model/checkpoint/work_log.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "kernels/base/error.h"
#include "runtime/model/checkpoint/storage.h"

namespace tandem {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr std::string_view kName = ".tandem-unfinished";
constexpr uint64_t kMostLog = 1 << 30;

}  // namespace

WorkLog::WorkLog(const std::string& option, const std::string& what, const std::string& folder, const json& job) {
  std::error_code error;
  if (fs::exists(folder, error) && !fs::is_directory(folder, error)) bad_input(option, "is " + folder + ", a file (must be a folder, new or empty)");
  fs::create_directories(folder, error);
  if (error) bad_input(option, "cannot make the folder " + folder + ": " + error.message() + " (must be a folder that can be written)");
  path_ = folder + "/" + std::string(kName);
  const bool begun = fs::exists(path_, error);
  if (!begun && !fs::is_empty(folder, error)) bad_input(option, "is " + folder + ", which holds files (must be a folder, new or empty, or one where " + what + " was interrupted)");
  descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (descriptor_ < 0) bad_input(option, "cannot write in " + folder + ": " + std::strerror(errno) + " (must be a folder that can be written)");
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
    ::close(descriptor_);
    bad_input(option, "is " + folder + ", which another process is writing (wait for it, or give another folder)");
  }
  // A line that was cut when the process was killed is no line; what comes after a broken one is not believed.
  const std::string text = read_text(path_, kMostLog);
  size_t good = 0;
  json first;
  for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    json line = json::parse(text.begin() + static_cast<int64_t>(begin), text.begin() + static_cast<int64_t>(end), nullptr, false);
    if (!line.is_object()) break;
    if (begin == 0) {
      first = std::move(line);
    } else {
      if (!line.contains("piece") || !line["piece"].is_string() || !line.contains("result")) break;
      done_[line["piece"]] = std::move(line["result"]);
    }
    good = end + 1;
  }
  if (good > 0 && first != job) {
    ::close(descriptor_);
    bad_input(option, "is " + folder + ", where other work was interrupted: " + first.dump(-1, ' ', true, json::error_handler_t::replace) + " (give the same model and options to go on, or another folder)");
  }
  if (::ftruncate(descriptor_, static_cast<off_t>(good)) != 0) bad_input(option, "cannot write in " + folder + ": " + std::strerror(errno));
  if (good == 0) {
    const std::string line = job.dump() + "\n";
    if (::write(descriptor_, line.data(), line.size()) != static_cast<ssize_t>(line.size())) fail(Code::resource_exhausted, folder, std::string("cannot be written: ") + std::strerror(errno));
  }
}

WorkLog::~WorkLog() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

const json* WorkLog::find(const std::string& piece) const {
  const auto found = done_.find(piece);
  return found == done_.end() ? nullptr : &found->second;
}

void WorkLog::add(const std::string& piece, json result) {
  const std::string line = json{{"piece", piece}, {"result", std::move(result)}}.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
  std::lock_guard lock(mutex_);
  if (::write(descriptor_, line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
    fail(Code::resource_exhausted, path_, std::string("cannot be written: ") + std::strerror(errno ? errno : ENOSPC));
  }
}

void WorkLog::remove() { ::unlink(path_.c_str()); }

}  // namespace tandem
