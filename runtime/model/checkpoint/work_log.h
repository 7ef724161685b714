// What long work has done so far, in a file of the folder that it fills, so that it goes on after it was killed. One JSON object a line:
// what the work is, then one line for each piece that is done. While it is open no other process can open it. add() may be called from
// many threads.
#pragma once
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>

namespace tandem {

class WorkLog {
 public:
  // Makes the folder, or goes on in one where the same work was begun. `option` and `what` ("`tandem quantize`") are for messages.
  // Errors: Code::invalid_argument: the folder holds other files, or other work; another process is at it.
  WorkLog(const std::string& option, const std::string& what, const std::string& folder, const nlohmann::json& job);
  ~WorkLog();
  WorkLog(const WorkLog&) = delete;

  const nlohmann::json* find(const std::string& piece) const;  // of an earlier process; null: not done
  bool went_on() const { return !done_.empty(); }
  void add(const std::string& piece, nlohmann::json result);  // Errors: Code::resource_exhausted
  void remove();                                              // the work is done

 private:
  std::string path_;
  int descriptor_ = -1;
  std::map<std::string, nlohmann::json> done_;
  std::mutex mutex_;
};

}  // namespace tandem
