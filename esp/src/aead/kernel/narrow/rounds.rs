//! AES over eight vectors, and the products of eight between its rounds, each as one piece of
//! assembly: so that they are exactly as interleaved as it is written.
//!
//! An AES round on eight vectors takes the two pipes of AES four cycles, which is also what a round
//! has to wait for the one before it. The three products of a vector fill these pipes for half a
//! cycle each, but only one can begin in two cycles: with six cycles for a round that has them, the
//! pipes of both are almost full.

use core::arch::asm;

use super::super::key::{POLYNOMIAL, STRIDES};
use super::super::lanes::{Lanes, Products, X1, X1Avx, X2};
use super::super::packet::Packet;

/// Vectors of a whole chunk.
pub(super) const WHOLE: usize = STRIDES;

/// Vectors for which there is such a piece.
pub(super) trait Rounds: Lanes {
    /// Whether there is.
    const TOGETHER: bool;

    /// Encrypts counter blocks to which the first round key has been added, and multiplies
    /// `blocks` with `powers`.
    ///
    /// # Safety
    /// See [`Lanes`]; `keys` is valid for `11 + extra` round keys, `blocks` for [`WHOLE`]
    /// vectors, aligned, `powers` for as many blocks.
    unsafe fn rounds_and_products(
        states: &mut [Self; WHOLE],
        keys: *const u128,
        extra: usize,
        blocks: *const Self,
        powers: *const u128,
    ) -> Products<Self>;

    /// Encrypts or decrypts whole chunks of text.
    ///
    /// # Safety
    /// See [`Lanes`]; `chunks` says what has to be valid.
    unsafe fn whole_chunks<const SEAL: bool>(
        chunks: Chunks<Self>,
        products: Products<Self>,
    ) -> Products<Self>;

    /// Seals or opens packets that are [long](super::long::is_long).
    ///
    /// # Safety
    /// See [`Lanes`]; `which` has a bit for each packet that is meant.
    unsafe fn crypt_long<const SEAL: bool>(packets: &mut [Packet], which: u64);
}

/// Chunks of [`WHOLE`] vectors of text, at least one.
pub(super) struct Chunks<L> {
    pub(super) count: usize,
    /// Valid for all chunks.
    pub(super) text: *mut u8,
    /// What is sealed: the hash input before the first chunk, a chunk, bytes in their order. The
    /// hash of the last chunk is left to the caller. What is opened: the text.
    pub(super) source: *const u8,
    /// The first counter less the blocks of a chunk, of which it is a multiple.
    pub(super) counter: u32,
    /// The counter block with the counter 0 in every lane, after the addition of the first round
    /// key; behind it there is room for the sum of the hash.
    pub(super) frame: *mut [L; 2],
    /// From the second round key on, `10 + extra`.
    pub(super) keys: *const u128,
    pub(super) extra: usize,
    /// That of the last vector of a chunk; [`WHOLE`] in ascending order.
    pub(super) powers: *const u128,
}

/// What is added to the counter block of each lane of a chunk of which the first counter is a
/// multiple of the blocks of a chunk.
#[repr(align(64))]
struct Numbers([u128; 2 * WHOLE]);

static NUMBERS: Numbers = {
    let mut numbers = [0; 2 * WHOLE];
    let mut n = 0;
    while n < numbers.len() {
        numbers[n] = (n as u128) << 120;
        n += 1;
    }
    Numbers(numbers)
};

/// What is added to the counter block in each of so many lanes as there are, from this one on.
#[inline(always)]
pub(super) fn number(lane: usize) -> *const u128 {
    NUMBERS.0.as_ptr().wrapping_add(lane)
}

/// A block twice.
#[repr(align(64))]
#[expect(dead_code, reason = "read by assembly only")]
struct Pair([u128; 2]);

/// For each byte, the one it is exchanged with.
static REVERSE: Pair = Pair([0x00010203_04050607_08090a0b_0c0d0e0f; 2]);

static POLYNOMIALS: Pair =
    Pair([((POLYNOMIAL as u64 as u128) << 64) | POLYNOMIAL as u64 as u128; 2]);

/// Without three-operand instructions there is none.
impl Rounds for X1 {
    const TOGETHER: bool = false;

    #[inline(always)]
    unsafe fn rounds_and_products(
        _: &mut [Self; WHOLE],
        _: *const u128,
        _: usize,
        _: *const Self,
        _: *const u128,
    ) -> Products<Self> {
        // SAFETY: as for this function.
        unsafe { Products::zero() }
    }

    #[inline(always)]
    unsafe fn whole_chunks<const SEAL: bool>(
        _: Chunks<Self>,
        products: Products<Self>,
    ) -> Products<Self> {
        products
    }

    #[inline(always)]
    unsafe fn crypt_long<const SEAL: bool>(_: &mut [Packet], _: u64) {}
}

/// `$op` on each of eight states with the round key.
macro_rules! each {
    ($op:literal, $r:literal, $($n:literal)+) => {
        concat!($($op, " ", $r, $n, ", ", $r, $n, ", ", $r, "8\n"),+)
    };
}

/// A round, and the products of vector `$n` (Karatsuba).
macro_rules! round {
    ($r:literal, $load:literal, $width:literal, $n:literal) => {
        concat!(
            $load, " ", $r, "8, [{keys} + 16*", $n, "]\n",
            "vmovdqa ", $r, "12, [{blocks} + 16*", $width, "*", $n, "]\n",
            $load, " ", $r, "13, [{powers} + 16*", $n, "]\n",
            each!("vaesenc", $r, "0" "1"),
            "vpclmulqdq ", $r, "14, ", $r, "12, ", $r, "13, 0x00\n",
            each!("vaesenc", $r, "2"),
            "vpshufd ", $r, "15, ", $r, "12, 0x4e\n",
            each!("vaesenc", $r, "3"),
            "vpxor ", $r, "9, ", $r, "9, ", $r, "14\n",
            "vpclmulqdq ", $r, "14, ", $r, "12, ", $r, "13, 0x11\n",
            each!("vaesenc", $r, "4"),
            "vpxor ", $r, "15, ", $r, "15, ", $r, "12\n",
            "vpshufd ", $r, "12, ", $r, "13, 0x4e\n",
            each!("vaesenc", $r, "5"),
            "vpxor ", $r, "10, ", $r, "10, ", $r, "14\n",
            "vpxor ", $r, "13, ", $r, "13, ", $r, "12\n",
            each!("vaesenc", $r, "6"),
            "vpclmulqdq ", $r, "15, ", $r, "15, ", $r, "13, 0x00\n",
            each!("vaesenc", $r, "7"),
            "vpxor ", $r, "11, ", $r, "11, ", $r, "15\n",
        )
    };
}

/// A round, and the products of vector `$i` of the source, with which the sum is added to the first.
macro_rules! round_of_chunk {
    ($r:literal, $load:literal, $width:literal, $round:literal, $i:literal, $power:literal,
     $sum:expr) => {
        concat!(
            $load,
            " ",
            $r,
            "8, [{key} + 16*",
            $round,
            "]\n",
            "vmovdqu ",
            $r,
            "12, [{source} + 16*",
            $width,
            "*",
            $i,
            "]\n",
            $load,
            " ",
            $r,
            "13, [{powers} + 16*",
            $power,
            "]\n",
            each!("vaesenc", $r, "0"),
            "vpshufb ",
            $r,
            "12, ",
            $r,
            "12, [rip + {reverse}]\n",
            $sum,
            each!("vaesenc", $r, "1"),
            "vpclmulqdq ",
            $r,
            "14, ",
            $r,
            "12, ",
            $r,
            "13, 0x00\n",
            each!("vaesenc", $r, "2"),
            "vpshufd ",
            $r,
            "15, ",
            $r,
            "12, 0x4e\n",
            each!("vaesenc", $r, "3"),
            "vpxor ",
            $r,
            "9, ",
            $r,
            "9, ",
            $r,
            "14\n",
            "vpclmulqdq ",
            $r,
            "14, ",
            $r,
            "12, ",
            $r,
            "13, 0x11\n",
            each!("vaesenc", $r, "4"),
            "vpxor ",
            $r,
            "15, ",
            $r,
            "15, ",
            $r,
            "12\n",
            "vpshufd ",
            $r,
            "12, ",
            $r,
            "13, 0x4e\n",
            each!("vaesenc", $r, "5"),
            "vpxor ",
            $r,
            "10, ",
            $r,
            "10, ",
            $r,
            "14\n",
            "vpxor ",
            $r,
            "13, ",
            $r,
            "13, ",
            $r,
            "12\n",
            each!("vaesenc", $r, "6"),
            "vpclmulqdq ",
            $r,
            "15, ",
            $r,
            "15, ",
            $r,
            "13, 0x00\n",
            each!("vaesenc", $r, "7"),
            "vpxor ",
            $r,
            "11, ",
            $r,
            "11, ",
            $r,
            "15\n",
        )
    };
}

/// The last round of vector `$i`, with its text.
macro_rules! last_round {
    ($r:literal, $width:literal, $($i:literal $t:literal)+) => {
        concat!($(
            "vpxor ", $r, $t, ", ", $r, "8, [{text} + 16*", $width, "*", $i, "]\n",
            "vaesenclast ", $r, $i, ", ", $r, $i, ", ", $r, $t, "\n",
        )+
        $("vmovdqu [{text} + 16*", $width, "*", $i, "], ", $r, $i, "\n",)+)
    };
}

/// The counter blocks of a chunk.
macro_rules! counters {
    ($r:literal, $width:literal, $($i:literal)+) => {
        concat!($(
            "vpxor ", $r, $i, ", ", $r, "8, [rip + {numbers} + 16*", $width, "*", $i, "]\n",
        )+)
    };
}

macro_rules! rounds {
    ($name:ident, $r:literal, $load:literal, $width:literal, $both:literal, $features:literal,
     $s0:tt $s1:tt $s2:tt $s3:tt $s4:tt $s5:tt $s6:tt $s7:tt
     $key:tt $low:tt $high:tt $middle:tt $t0:tt $t1:tt $t2:tt $t3:tt) => {
        impl Rounds for $name {
            const TOGETHER: bool = true;

            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn rounds_and_products(
                states: &mut [Self; WHOLE],
                keys: *const u128,
                extra: usize,
                blocks: *const Self,
                powers: *const u128,
            ) -> Products<Self> {
                let [a, b, c, d, e, f, g, h] = states;
                let (low, high, middle);
                // SAFETY: the caller keeps the contract; only memory that it names is read.
                unsafe {
                    asm!(
                        concat!(
                            "vpxor ", $r, "9, ", $r, "9, ", $r, "9\n",
                            "vpxor ", $r, "10, ", $r, "10, ", $r, "10\n",
                            "vpxor ", $r, "11, ", $r, "11, ", $r, "11\n",
                            // All but ten rounds of the longer keys.
                            "test {extra}, {extra}\n",
                            "jz 3f\n",
                            "2:\n",
                            $load, " ", $r, "8, [{keys}]\n",
                            each!("vaesenc", $r, "0" "1" "2" "3" "4" "5" "6" "7"),
                            "add {keys}, 16\n",
                            "dec {extra}\n",
                            "jnz 2b\n",
                            "3:\n",
                        ),
                        round!($r, $load, $width, "0"),
                        round!($r, $load, $width, "1"),
                        round!($r, $load, $width, "2"),
                        round!($r, $load, $width, "3"),
                        round!($r, $load, $width, "4"),
                        round!($r, $load, $width, "5"),
                        round!($r, $load, $width, "6"),
                        round!($r, $load, $width, "7"),
                        concat!(
                            $load, " ", $r, "8, [{keys} + 16*8]\n",
                            each!("vaesenc", $r, "0" "1" "2" "3" "4" "5" "6" "7"),
                            $load, " ", $r, "8, [{keys} + 16*9]\n",
                            each!("vaesenclast", $r, "0" "1" "2" "3" "4" "5" "6" "7"),
                        ),
                        keys = inout(reg) keys.add(1) => _,
                        extra = inout(reg) extra => _,
                        blocks = in(reg) blocks,
                        powers = in(reg) powers,
                        inout($s0) a.0,
                        inout($s1) b.0,
                        inout($s2) c.0,
                        inout($s3) d.0,
                        inout($s4) e.0,
                        inout($s5) f.0,
                        inout($s6) g.0,
                        inout($s7) h.0,
                        out($key) _,
                        out($low) low,
                        out($high) high,
                        out($middle) middle,
                        out($t0) _,
                        out($t1) _,
                        out($t2) _,
                        out($t3) _,
                        options(nostack, readonly),
                    );
                }
                Products {
                    low: Self(low),
                    middle: Self(middle),
                    high: Self(high),
                }
            }

            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn whole_chunks<const SEAL: bool>(
                chunks: Chunks<Self>,
                products: Products<Self>,
            ) -> Products<Self> {
                let Products { low, middle, high } = products;
                let (mut low, mut middle, mut high) = (low.0, middle.0, high.0);
                // SAFETY: the caller keeps the contract; only memory that it names is read and
                // written, beside constants.
                unsafe {
                    asm!(
                        "2:",
                        concat!("add {counter:e}, 8*", $width),
                        "mov {number:e}, {counter:e}",
                        "bswap {number:e}",
                        "vmovd xmm12, {number:e}",
                        "vpslldq xmm12, xmm12, 12",
                        $both,
                        concat!("vpxor ", $r, "8, ", $r, "12, [{frame}]\n"),
                        counters!($r, $width, "0" "1" "2" "3" "4" "5" "6" "7"),
                        // All but ten rounds of the longer keys.
                        "mov {key}, {keys}",
                        "mov {number}, {extra}",
                        "test {number}, {number}",
                        "jz 4f",
                        "3:",
                        concat!(
                            $load, " ", $r, "8, [{key}]\n",
                            each!("vaesenc", $r, "0" "1" "2" "3" "4" "5" "6" "7"),
                        ),
                        "add {key}, 16",
                        "dec {number}",
                        "jnz 3b",
                        "4:",
                        // A round, and the products of the chunk before modulo the polynomial.
                        concat!(
                            $load, " ", $r, "8, [{key}]\n",
                            "vpxor ", $r, "11, ", $r, "11, ", $r, "9\n",
                            each!("vaesenc", $r, "0" "1"),
                            "vpxor ", $r, "11, ", $r, "11, ", $r, "10\n",
                            "vpslldq ", $r, "12, ", $r, "11, 8\n",
                            "vpxor ", $r, "9, ", $r, "9, ", $r, "12\n",
                            each!("vaesenc", $r, "2" "3"),
                            "vpclmulqdq ", $r, "12, ", $r, "9, [rip + {polynomials}], 0x00\n",
                            "vpsrldq ", $r, "13, ", $r, "11, 8\n",
                            "vpxor ", $r, "10, ", $r, "10, ", $r, "13\n",
                            "vpshufd ", $r, "9, ", $r, "9, 0x4e\n",
                            each!("vaesenc", $r, "4" "5"),
                            "vpxor ", $r, "9, ", $r, "9, ", $r, "12\n",
                            "vpclmulqdq ", $r, "12, ", $r, "9, [rip + {polynomials}], 0x00\n",
                            "vpshufd ", $r, "9, ", $r, "9, 0x4e\n",
                            each!("vaesenc", $r, "6" "7"),
                            "vpxor ", $r, "9, ", $r, "9, ", $r, "12\n",
                            "vpxor ", $r, "9, ", $r, "9, ", $r, "10\n",
                            "vmovdqa [{frame} + 16*", $width, "], ", $r, "9\n",
                            "vpxor ", $r, "9, ", $r, "9, ", $r, "9\n",
                            "vpxor ", $r, "10, ", $r, "10, ", $r, "10\n",
                            "vpxor ", $r, "11, ", $r, "11, ", $r, "11\n",
                        ),
                        round_of_chunk!($r, $load, $width, "1", "1", "6", ""),
                        round_of_chunk!($r, $load, $width, "2", "2", "5", ""),
                        round_of_chunk!($r, $load, $width, "3", "3", "4", ""),
                        round_of_chunk!($r, $load, $width, "4", "4", "3", ""),
                        round_of_chunk!($r, $load, $width, "5", "5", "2", ""),
                        round_of_chunk!($r, $load, $width, "6", "6", "1", ""),
                        round_of_chunk!($r, $load, $width, "7", "7", "0", ""),
                        round_of_chunk!($r, $load, $width, "8", "0", "7", concat!(
                            "vpxor ", $r, "12, ", $r, "12, [{frame} + 16*", $width, "]\n",
                        )),
                        concat!($load, " ", $r, "8, [{key} + 16*9]\n"),
                        last_round!($r, $width,
                            "0" "12" "1" "13" "2" "14" "3" "15"
                            "4" "12" "5" "13" "6" "14" "7" "15"),
                        // Of what is opened, the text is the source before it is written.
                        concat!("lea {source}, [{text} + {ahead}*128*", $width, "]\n"),
                        concat!("add {text}, 128*", $width),
                        "dec {count}",
                        "jnz 2b",
                        // With the counter block went a round key.
                        concat!("vpxor ", $r, "8, ", $r, "8, ", $r, "8"),
                        concat!("vmovdqa [{frame}], ", $r, "8"),
                        count = inout(reg) chunks.count => _,
                        text = inout(reg) chunks.text => _,
                        source = inout(reg) chunks.source => _,
                        counter = inout(reg) chunks.counter => _,
                        frame = in(reg) chunks.frame,
                        keys = in(reg) chunks.keys,
                        extra = in(reg) chunks.extra,
                        powers = in(reg) chunks.powers,
                        key = out(reg) _,
                        number = out(reg) _,
                        ahead = const if SEAL { 0 } else { 1 },
                        numbers = sym NUMBERS,
                        reverse = sym REVERSE,
                        polynomials = sym POLYNOMIALS,
                        out($s0) _,
                        out($s1) _,
                        out($s2) _,
                        out($s3) _,
                        out($s4) _,
                        out($s5) _,
                        out($s6) _,
                        out($s7) _,
                        out($key) _,
                        inout($low) low,
                        inout($high) high,
                        inout($middle) middle,
                        out($t0) _,
                        out($t1) _,
                        out($t2) _,
                        out($t3) _,
                        options(nostack),
                    );
                }
                Products {
                    low: Self(low),
                    middle: Self(middle),
                    high: Self(high),
                }
            }

            #[inline(never)]
            #[target_feature(enable = $features)]
            unsafe fn crypt_long<const SEAL: bool>(packets: &mut [Packet], which: u64) {
                // SAFETY: this function enables what the vectors need, the caller keeps the rest.
                unsafe { super::crypt_run::<Self, SEAL, true>(packets, which) }
            }
        }
    };
}

rounds! {
    X1Avx, "xmm", "vmovdqa", "1", "", "avx,aes,pclmulqdq,ssse3,sse4.1",
    "xmm0" "xmm1" "xmm2" "xmm3" "xmm4" "xmm5" "xmm6" "xmm7"
    "xmm8" "xmm9" "xmm10" "xmm11" "xmm12" "xmm13" "xmm14" "xmm15"
}

rounds! {
    X2, "ymm", "vbroadcasti128", "2", "vinserti128 ymm12, ymm12, xmm12, 1", "avx2,vaes,vpclmulqdq",
    "ymm0" "ymm1" "ymm2" "ymm3" "ymm4" "ymm5" "ymm6" "ymm7"
    "ymm8" "ymm9" "ymm10" "ymm11" "ymm12" "ymm13" "ymm14" "ymm15"
}
