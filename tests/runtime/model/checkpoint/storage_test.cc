#include "runtime/model/checkpoint/storage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/base/error.h"
#include "tests/runtime/model/checkpoint/files.h"

namespace tandem {
namespace {

TEST(Storage, FileAndMemoryReadAlike) {
  const testing::TemporaryDirectory directory;
  const std::string content = "0123456789";
  const auto file = open_file(directory.write("x", content)), memory = in_memory("y", testing::bytes_of(content));
  for (const Storage* storage : {file.get(), memory.get()}) {
    EXPECT_EQ(storage->size(), 10u);
    char out[4] = "???";
    storage->read(7, 3, out);
    EXPECT_STREQ(out, "789");
    EXPECT_NO_THROW(storage->read(10, 0, out));
    EXPECT_THROW(storage->read(8, 3, out), Error);
    EXPECT_THROW(storage->read(11, 0, out), Error);
    EXPECT_THROW(storage->read(~0ull, 2, out), Error);
    EXPECT_STREQ(out, "789");
  }
}

TEST(Storage, MissingFileHasItsOwnCode) {
  try {
    (void)open_file("/nowhere/at/all");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Code::not_found);
    EXPECT_EQ(error.where, "/nowhere/at/all");
  }
  EXPECT_THROW((void)open_file("/dev/zero"), Error);
}

TEST(Storage, NamesAreFitForOneLine) {
  EXPECT_EQ(in_quotes("model.norm.weight"), "'model.norm.weight'");
  EXPECT_EQ(in_quotes("a\nerror: \x1b[31m\x7f\xc3"), "'a\\x0aerror: \\x1b[31m\\x7f\\xc3'");
  EXPECT_EQ(in_quotes(std::string(500, 'n')), "'" + std::string(120, 'n') + "...'");
}

}  // namespace
}  // namespace tandem
