// tandem probe: devices and links, measured, as the file that plan --cluster reads.
#include <cstdio>

#include "kernels/base/error.h"
#include "launch/commands/commands.h"
#include "launch/output_file.h"
#include "launch/probe.h"
#include "launch/terminal.h"

namespace tandem {
namespace {

struct Options {
  ProbeOptions probe;
  std::string output;
};

// 4.5 TB/s, 61 GB/s, 820 MB/s
std::string rate(double bytes_per_second) {
  char text[32];
  if (bytes_per_second >= 1e12) {
    std::snprintf(text, sizeof text, "%.2f TB/s", bytes_per_second / 1e12);
  } else if (bytes_per_second >= 1e9) {
    std::snprintf(text, sizeof text, "%.1f GB/s", bytes_per_second / 1e9);
  } else {
    std::snprintf(text, sizeof text, "%.0f MB/s", bytes_per_second / 1e6);
  }
  return text;
}

std::string table(const Cluster& cluster) {
  std::string text = "device            kind        total       free        reads\n";
  char line[256];
  for (const Device& d : cluster.devices) {
    std::snprintf(line, sizeof line, "%-16s  %-8s  %-10s  %-10s  %s\n", d.id.c_str(), d.kind.c_str(), human_bytes(d.total_bytes).c_str(),
                  human_bytes(d.free_bytes).c_str(), rate(d.bandwidth).c_str());
    text += line;
  }
  if (!cluster.links.empty()) text += "\nfrom              to                latency     rate\n";
  for (const Link& l : cluster.links) {
    std::snprintf(line, sizeof line, "%-16s  %-16s  %6.1f us   %s\n", l.from.c_str(), l.to.c_str(), l.latency * 1e6, rate(l.bandwidth).c_str());
    text += line;
  }
  return text;
}

int probe(const Options& o) {
  if (o.probe.threads < 0) bad_input("--threads", "is " + std::to_string(o.probe.threads) + " (must be 0 or more)");
  const bool first = rank_under_mpirun() <= 0, show = first && is_terminal(stderr);
  const ProbeListener listener = [show](const std::string& what) {
    if (show) std::fprintf(stderr, "\r\033[Kmeasuring %s", what.c_str());
  };
  std::unique_ptr<OutputFile> file;
  if (first && !o.output.empty()) file = std::make_unique<OutputFile>("-o", o.output);
  Cluster cluster;
  if (under_mpirun()) {
    ThisJob job = join_ranks();
    cluster = probe_job(o.probe, *job.communicator, job.world, listener);
    job.communicator.reset();
    finalize_mpi();
  } else {
    cluster = probe_here(o.probe, listener);
  }
  if (show) std::fprintf(stderr, "\r\033[K");
  if (!first) return 0;
  const std::string json = to_json(cluster).dump(2) + "\n";
  if (file == nullptr) {
    write_now(stdout, json);
    return 0;
  }
  file->write(json);
  file->finish();
  write_now(stdout, table(cluster));
  return 0;
}

}  // namespace

Command add_probe(CLI::App& app) {
  auto options = std::make_shared<Options>();
  Options& o = *options;
  CLI::App* command = app.add_subcommand("probe", "Measure devices and links, for plan --cluster");
  command->add_option("-o,--output", o.output, "write the cluster file here and show a table; without it the file goes to the output");
  command->add_option("--device", o.probe.device, "cpu, cuda, cuda:0,1 or auto: GPUs where there are any")->capture_default_str();
  command->add_option("--threads", o.probe.threads, "of a CPU device; 0: its cores")->capture_default_str();
  command->footer(
      "Seconds, not minutes. Under mpirun every rank takes part: CPU ranks measure their share of the memory at once, and each pair of\n"
      "ranks its link; of GPUs one rank of each host measures all, and hosts their links.\n\n"
      "Examples: tandem probe -o cluster.json && tandem plan MODEL --cluster cluster.json\n"
      "          mpirun -n 2 --host a,b tandem probe -o cluster.json");
  return {command, [options] { return probe(*options); }, true};
}

}  // namespace tandem
