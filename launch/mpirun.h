// Starts `mpirun ... tandem worker` once an epoch and kills it whole. The coordinator itself stays outside MPI.
#pragma once
#include <memory>
#include <string>

#include "launch/control_group.h"

namespace tandem {

struct MpirunOptions {
  std::string hosts;        // "a,b": --host; empty: this machine
  std::string log_level;    // the workers'
  bool show_output = false; // mpirun's and the workers' own stderr
};

// Errors: failed_precondition when there is no mpirun.
std::unique_ptr<Launcher> make_mpirun_launcher(MpirunOptions options);

}  // namespace tandem
