// Writes an OutputPlan: tensor after tensor, each thread at its own, in pieces of a few megabytes (formats whose statistics are of the
// whole matrix: a matrix a thread). What is done is logged with checksums; interrupted work goes on where it was after reading back what
// is there. Files appear under their names when they are whole; config.json comes last.
#pragma once
#include "runtime/model/loader.h"
#include "runtime/model/output_plan.h"

namespace tandem {

struct OutputFileText { std::string name, text; };  // written as it is, before config.json

struct RequantizeOptions {
  std::string folder;
  int threads = 1;
  nlohmann::json job;  // what tells this work from other work
  std::vector<OutputFileText> files;
};

struct Requantized {
  uint64_t resumed_bytes = 0;  // of output that an earlier process had made and that was found whole
  uint64_t bytes = 0;          // of all shards
};

// Errors: Code::invalid_argument: the folder, or what is read; Code::resource_exhausted: the disk is full, and how to go on.
Requantized requantize(const Blueprint& blueprint, const OutputPlan& plan, const RequantizeOptions& options, const LoadListener& listener);

}  // namespace tandem
