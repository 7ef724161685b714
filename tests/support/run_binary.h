// Runs the real program and keeps what it said. Linux; each call waits for the end.
#pragma once
#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <unistd.h>

#include "rpc/slow_factor.h"

namespace tandem {

struct Ran {
  int code = -1;
  std::string out, err;
};

inline std::string read_whole(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// A folder of its own, gone at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "tandem-test-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// `arguments` as a shell reads them, without the program's name.
inline Ran run_tandem(const std::string& arguments, const std::string& input = "") {
  const TemporaryFolder folder;
  std::ofstream(folder / "in") << input;
  const std::string line = "timeout " + std::to_string(static_cast<int>(120 * kSlowFactor)) + " " TANDEM_BINARY " " + arguments + " <" + (folder / "in") + " >" + (folder / "out") + " 2>" + (folder / "err");
  const int status = std::system(line.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_whole(folder / "out"), read_whole(folder / "err")};
}

// How many lines of stderr are our error lines.
inline int error_lines(const Ran& ran) {
  int count = 0;
  std::stringstream text(ran.err);
  for (std::string line; std::getline(text, line);) count += line.starts_with("error: ");
  return count;
}

}  // namespace tandem
