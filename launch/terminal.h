// What this process's terminal can do, and output that reaches it token by token.
#pragma once
#include <cstdio>
#include <string_view>

namespace tandem {

bool is_terminal(std::FILE* stream);
int columns(std::FILE* stream);  // of the terminal, else 100

// Writes all of it and flushes, so that a reader sees each token when it comes. Errors: Code::failed_precondition when nobody reads any
// more (a closed pipe) or the disk is full.
void write_now(std::FILE* stream, std::string_view text);

// A text of someone else, for a terminal: control characters but newline and tab are shown, not obeyed. A piece may not end within a
// character; text for pipes and files goes through unchanged.
void show_now(std::FILE* stream, std::string_view text);

}  // namespace tandem
