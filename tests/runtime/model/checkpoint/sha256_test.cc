#include "runtime/model/checkpoint/sha256.h"

#include <gtest/gtest.h>

namespace tandem {
namespace {

// FIPS 180-4's examples and the lengths around a block's end (values from coreutils' sha256sum).
TEST(Sha256, KnownDigests) {
  EXPECT_EQ(Sha256().hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256().add("abc").hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sha256().add("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq").hex(),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(Sha256().add(std::string(1'000'000, 'a')).hex(), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  EXPECT_EQ(Sha256().add(std::string(55, 'x')).hex(), "d5e285683cd4efc02d021a5c62014694958901005d6f71e89e0989fac77e4072");
  EXPECT_EQ(Sha256().add(std::string(56, 'x')).hex(), "04c26261370ee7541549d16dee320c723e3fd14671e66a099afe0a377c16888e");
  EXPECT_EQ(Sha256().add(std::string(63, 'x')).hex(), "75220b47218278e656f2013bb8f0c455a25eaf01e86c64924e9d48d89776d6f2");
  EXPECT_EQ(Sha256().add(std::string(64, 'x')).hex(), "7ce100971f64e7001e8fe5a51973ecdfe1ced42befe7ee8d5fd6219506b5393c");
  EXPECT_EQ(Sha256().add(std::string(119, 'x')).hex(), "000b48d4edf0fa7bee3c6236ecd2785baa5db4eeb8bb54341b029e0d9fa5fb0c");
}

TEST(Sha256, PiecesMakeNoDifference) {
  const std::string text(300, 'q');
  const std::string whole = Sha256().add(text).hex();
  for (size_t cut = 0; cut <= text.size(); ++cut) EXPECT_EQ(Sha256().add(text.substr(0, cut)).add(text.substr(cut)).hex(), whole);
  Sha256 bytewise;
  for (const char c : text) bytewise.add({&c, 1});
  EXPECT_EQ(bytewise.hex(), whole);
}

}  // namespace
}  // namespace tandem
