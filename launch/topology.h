// Where this process stands: its cores, its place in an MPI job, its parent.
#pragma once
#include <string>

namespace tandem {

// Under a launcher that pins each rank to a core, ranks of one host share all cores evenly instead. Returns how many this one got.
int share_cores(int local_rank, int local_size);
int threads_for(int asked, int ranks_here);  // --threads, or the cores of this process divided by its ranks

// Threads made from now on sleep to the microsecond instead of up to 50 us longer: a rank waits for its neighbour many times a token.
void sleep_precisely();

// The kernel kills this process when its parent dies; ends at once when that has happened already.
void die_with_parent();

std::string host_name();
std::string executable_path();       // of this program
std::string random_secret();         // 32 hexadecimal digits
std::string build_id();              // version and size and time of the executable: equal on both ends of a control stream

}  // namespace tandem
