//! A chunk of a row in one piece of assembly: AES and text of up to eight vectors, with the
//! hash of up to eight vectors mixed in.
//!
//! The AES and the carry-less multiplications of the CPUs that have both at 512 bits share two
//! pipes. One round of AES over eight vectors keeps both busy for eight cycles; four times in
//! ten rounds the multiplications of two vectors of hash input stand between two rounds, so
//! that neither kind waits for the other. A compiler would move them apart, broadcast the
//! round keys early and spill them.

use core::arch::asm;
use core::arch::x86_64::*;
use core::mem::offset_of;

use super::super::key::{POLYNOMIAL, ROUND_KEYS};
use super::super::packet::Packet;
use super::hash::{Powers, Products};
use super::line::Steps;
use super::{lanes, reverse_bytes, reversed};

/// Vectors in a chunk at most.
pub(super) const CHUNK: usize = 8;

/// AES and text of a chunk.
#[repr(C)]
pub(super) struct Text {
    /// Round keys, each in four lanes: a load that spreads 128 bits takes a place in the pipes
    /// of AES, a load of 512 bits none.
    pub(super) keys: *const [__m512i; ROUND_KEYS],
    /// Rounds beyond those of AES-128.
    pub(super) extra: usize,
    /// Where the first vector begins.
    pub(super) at: *mut u8,
    /// The bytes of the first and the last vector that are text; the others are whole.
    pub(super) masks: [u64; 2],
    /// Whether these are whole, too.
    pub(super) whole: bool,
}

/// Hash input of a chunk of at least two vectors.
#[repr(C)]
pub(super) struct Hash {
    pub(super) first: *const u8,
    pub(super) last: *const u8,
    /// Where the vectors between them end.
    pub(super) end: *const u8,
    /// Vectors between them.
    pub(super) between: usize,
    /// The power for the last vector; those for the others follow backwards.
    pub(super) powers: *const u128,
    /// Whose authenticated data and lengths are added to the first and the last vector.
    pub(super) packet: *const Packet,
    /// The bytes of the first and the last vector that are hash input.
    pub(super) masks: [u64; 2],
    /// The lanes, two bits for each, of the authenticated data and of the lengths.
    pub(super) lanes: [u64; 2],
    /// Whether the masks are of all bytes and no lanes.
    pub(super) whole: bool,
    /// What is added to the first vector instead of the hash of the chunk before, if not null.
    pub(super) start: *const __m512i,
}

/// The hash of a chunk, and what becomes of it.
#[repr(C, align(64))]
pub(super) struct Sum {
    pub(super) products: Products,
    /// The encrypted counter block for the tag, in one lane.
    pub(super) mask: __m512i,
    /// Powers of the hash key, the first first, if the packet has ended and the sum becomes its
    /// tag; otherwise null, and the sum is added to the next hash input.
    pub(super) powers: *const u128,
    /// Where the sum goes as well.
    pub(super) out: *mut __m512i,
}

/// What comes out of a chunk.
pub(super) struct Output {
    /// The counter blocks of the next chunk.
    pub(super) counters: __m512i,
    /// The first vector of text with the keystream added, also where it is not text.
    pub(super) first: __m512i,
    /// The tag of the packet that has ended with the hash before, if any.
    pub(super) tag: __m128i,
}

/// Encrypts or decrypts `count` vectors of text, starting from the counter blocks `counters`
/// to which the others add `steps`; hashes other vectors and puts their hash to the place of
/// that before, which it finishes. Unless they are whole, the first and the last vector of output
/// go to `edges` as well: what has just been stored with a mask can not be loaded for long.
///
/// # Safety
/// The CPU has what the kernel needs; all bytes of text and hash input exist, and a power for
/// each vector of it. `count` is 2 to [`CHUNK`], `between` at most 6.
#[inline(always)]
pub(super) unsafe fn crypt<const TAGS: bool>(
    count: usize,
    text: &Text,
    counters: __m512i,
    steps: &Steps,
    hash: &Hash,
    sum: &mut Sum,
    edges: &mut [__m512i; 2],
) -> Output {
    // SAFETY: the caller keeps the contract.
    unsafe {
        macro_rules! chunk_of {
            ($what:ident) => {
                match count {
                    8 => $what::eight(text, counters, steps, hash, sum, edges),
                    7 => $what::seven(text, counters, steps, hash, sum, edges),
                    6 => $what::six(text, counters, steps, hash, sum, edges),
                    5 => $what::five(text, counters, steps, hash, sum, edges),
                    4 => $what::four(text, counters, steps, hash, sum, edges),
                    3 => $what::three(text, counters, steps, hash, sum, edges),
                    _ => $what::two(text, counters, steps, hash, sum, edges),
                }
            };
        }
        if TAGS {
            chunk_of!(tags)
        } else {
            chunk_of!(sums)
        }
    }
}

/// The hash without anything beside it; `sum` is added to the first vector.
///
/// # Safety
/// As for [`crypt`].
#[inline(always)]
pub(super) unsafe fn hash(hash: &Hash, sum: __m512i) -> Products {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let powers = Powers {
            lanes: [hash.powers; 4],
            same: true,
        };
        let edge = |at: *const u8, n: usize, block: u128| {
            let text = _mm512_maskz_loadu_epi8(hash.masks[n], at.cast());
            let block = _mm512_maskz_mov_epi64(hash.lanes[n] as u8, lanes(block as i128));
            _mm512_xor_si512(reverse_bytes(text), block)
        };
        let mut products = Products::zero();
        products.add(edge(hash.last, 1, (*hash.packet).lengths), &powers, 0);
        for n in 1..=hash.between {
            let block = _mm512_loadu_si512(hash.end.wrapping_sub(64 * n).cast());
            products.add(reverse_bytes(block), &powers, n);
        }
        let first = _mm512_xor_si512(edge(hash.first, 0, (*hash.packet).aad), sum);
        products.add(first, &powers, hash.between + 1);
        products
    }
}

/// As [`hash`], of vectors that are whole.
///
/// # Safety
/// As for [`crypt`].
#[inline(always)]
pub(super) unsafe fn hash_whole(hash: &Hash, sum: __m512i) -> Products {
    // SAFETY: the caller keeps the contract.
    unsafe {
        let powers = Powers {
            lanes: [hash.powers; 4],
            same: true,
        };
        let mut products = Products::zero();
        for n in 0..=hash.between {
            let block = _mm512_loadu_si512(hash.end.wrapping_sub(64 * n).cast());
            products.add(reverse_bytes(block), &powers, n);
        }
        let first = reverse_bytes(_mm512_loadu_si512(hash.first.cast()));
        products.add(_mm512_xor_si512(first, sum), &powers, hash.between + 1);
        products
    }
}

/// Two vectors of hash input, in zmm16 and zmm17 and byte-reversed, times the powers at `$p` and `$q`.
macro_rules! multiply_two {
    ($p:literal, $q:literal) => {
        concat!(
            // The sums of the halves of both, side by side (Karatsuba).
            "vpunpcklqdq zmm18, zmm16, zmm17\n",
            "vpunpckhqdq zmm19, zmm16, zmm17\n",
            "vpxorq zmm18, zmm18, zmm19\n",
            "vpbroadcastq zmm19, [",
            $p,
            "]\n",
            "vpbroadcastq zmm20, [",
            $p,
            " + 8]\n",
            "vpbroadcastq zmm21, [",
            $q,
            "]\n",
            "vpbroadcastq zmm22, [",
            $q,
            " + 8]\n",
            "vpclmulqdq zmm23, zmm16, zmm19, 0x00\n",
            "vpclmulqdq zmm16, zmm16, zmm20, 0x01\n",
            "vpxorq zmm19, zmm19, zmm20\n",
            "vpclmulqdq zmm20, zmm17, zmm21, 0x00\n",
            "vpternlogq zmm24, zmm23, zmm20, 0x96\n",
            "vpclmulqdq zmm17, zmm17, zmm22, 0x01\n",
            "vpternlogq zmm26, zmm16, zmm17, 0x96\n",
            "vpxorq zmm21, zmm21, zmm22\n",
            "vpclmulqdq zmm19, zmm18, zmm19, 0x00\n",
            "vpclmulqdq zmm18, zmm18, zmm21, 0x01\n",
            "vpternlogq zmm25, zmm18, zmm19, 0x96\n",
        )
    };
}

/// Vectors `2 * $n` and `2 * $n + 1` from the end of those between first and last, if there are
/// both.
macro_rules! between {
    ($n:literal, $p:literal, $q:literal) => {
        concat!(
            "cmp {between:e}, 32*",
            $n,
            " + 32\n",
            "jb 2f\n",
            "vmovdqu64 zmm16, [{end} - 128*",
            $n,
            " - 64]\n",
            "vmovdqu64 zmm17, [{end} - 128*",
            $n,
            " - 128]\n",
            "vpshufb zmm16, zmm16, zmm27\n",
            "vpshufb zmm17, zmm17, zmm27\n",
            multiply_two!($p, $q),
            "2:\n",
        )
    };
}

/// The vector between first and last that is left over from the pairs, if any.
macro_rules! one_between {
    () => {
        concat!(
            "test {between:e}, 16\n",
            "jz 2f\n",
            "vpbroadcastq zmm19, [{powers} + {between}]\n",
            "vpbroadcastq zmm20, [{powers} + {between} + 8]\n",
            "neg {between}\n",
            "vmovdqu64 zmm16, [{end} + 4*{between}]\n",
            "neg {between}\n",
            "vpshufb zmm16, zmm16, zmm27\n",
            "vpshufd zmm17, zmm16, 0x4e\n",
            "vpxorq zmm17, zmm17, zmm16\n",
            "vpxorq zmm21, zmm19, zmm20\n",
            "vpclmulqdq zmm19, zmm16, zmm19, 0x00\n",
            "vpclmulqdq zmm16, zmm16, zmm20, 0x01\n",
            "vpclmulqdq zmm17, zmm17, zmm21, 0x00\n",
            "vpxorq zmm24, zmm24, zmm19\n",
            "vpxorq zmm26, zmm26, zmm16\n",
            "vpxorq zmm25, zmm25, zmm17\n",
            "2:\n",
        )
    };
}

/// The last and the first vector; the sum is added to the first.
macro_rules! ends {
    () => {
        concat!(
            "cmp byte ptr [{hash} + {hash_whole}], 0\n",
            "je 2f\n",
            "mov {extra}, [{hash} + {first}]\n",
            "vmovdqu64 zmm16, [{end}]\n",
            "vmovdqu64 zmm17, [{extra}]\n",
            "vpshufb zmm16, zmm16, zmm27\n",
            "vpshufb zmm17, zmm17, zmm27\n",
            "vpxorq zmm17, zmm17, zmm29\n",
            "jmp 3f\n",
            "2:\n",
            "mov {end}, [{hash} + {last}]\n",
            "kmovq k1, [{hash} + {masks} + 8]\n",
            "vmovdqu8 zmm16{{k1}}{{z}}, [{end}]\n",
            "mov {end}, [{hash} + {first}]\n",
            "kmovq k1, [{hash} + {masks}]\n",
            "vmovdqu8 zmm17{{k1}}{{z}}, [{end}]\n",
            "mov {end}, [{hash} + {packet}]\n",
            "kmovq k1, [{hash} + {lanes} + 8]\n",
            "vbroadcasti64x2 zmm18{{k1}}{{z}}, [{end} + {lengths}]\n",
            "kmovq k1, [{hash} + {lanes}]\n",
            "vbroadcasti64x2 zmm19{{k1}}{{z}}, [{end} + {aad}]\n",
            "vpshufb zmm16, zmm16, zmm27\n",
            "vpshufb zmm17, zmm17, zmm27\n",
            "vpxorq zmm16, zmm16, zmm18\n",
            "vpternlogq zmm17, zmm19, zmm29, 0x96\n",
            "3:\n",
            "lea {end}, [{powers} + {between}]\n",
            multiply_two!("{powers}", "{end} + 16"),
        )
    };
}

/// Reduces the hash of the chunk before, in steps that stand between rounds: what comes later in
/// the program never waits long for what comes before it, or the CPU would run out of room for
/// instructions that wait their turn.
macro_rules! reduce {
    (1) => {
        concat!(
            "vmovdqa64 zmm24, [{sum} + {low}]\n",
            "vmovdqa64 zmm26, [{sum} + {high}]\n",
            "vpxorq zmm25, zmm24, [{sum} + {middle}]\n",
            "vpxorq zmm25, zmm25, zmm26\n",
            "vpslldq zmm8, zmm25, 8\n",
            "vpsrldq zmm9, zmm25, 8\n",
            "vpxorq zmm8, zmm8, zmm24\n",
            "vpxorq zmm9, zmm9, zmm26\n",
            "vpxorq zmm24, zmm24, zmm24\n",
            "vpxorq zmm25, zmm25, zmm25\n",
            "vpxorq zmm26, zmm26, zmm26\n",
            "vpclmulqdq zmm10, zmm8, zmm11, 0x00\n",
            "vpshufd zmm8, zmm8, 0x4e\n",
        )
    };
    (2) => {
        concat!(
            "vpxorq zmm8, zmm8, zmm10\n",
            "vpclmulqdq zmm10, zmm8, zmm11, 0x00\n",
            "vpshufd zmm8, zmm8, 0x4e\n",
        )
    };
    (3) => {
        concat!(
            "vpternlogq zmm8, zmm10, zmm9, 0x96\n",
            "vmovdqa64 zmm29, zmm8\n",
        )
    };
}

/// Makes a tag of the sum, if the packet has ended; or puts the sum to its place, and takes what is
/// to be added instead if the next hash input is of another packet.
macro_rules! tag {
    (sum 1) => {
        concat!(
            "mov {extra}, [{hash} + {start}]\n",
            "vmovdqa64 [{ended}], zmm8\n",
            "test {extra}, {extra}\n",
            "jz 2f\n",
            "vmovdqa64 zmm29, [{extra}]\n",
            "2:\n",
        )
    };
    (sum $step:literal) => {
        ""
    };
    (tag 1) => {
        concat!(
            "test {ended}, {ended}\n",
            "jz 2f\n",
            "vmovdqu64 zmm9, [{ended}]\n",
            "vpxorq zmm29, zmm29, zmm29\n",
            "vshufi64x2 zmm9, zmm9, zmm9, 0x1b\n",
            "vpshufd zmm13, zmm8, 0x4e\n",
            "vpclmulqdq zmm10, zmm8, zmm9, 0x00\n",
            "vpxorq zmm13, zmm13, zmm8\n",
            "vpshufd zmm14, zmm9, 0x4e\n",
            "vpclmulqdq zmm12, zmm8, zmm9, 0x11\n",
            "vpxorq zmm14, zmm14, zmm9\n",
            "vpclmulqdq zmm13, zmm13, zmm14, 0x00\n",
            "2:\n",
        )
    };
    (tag 2) => {
        concat!(
            "test {ended}, {ended}\n",
            "jz 2f\n",
            "vpternlogq zmm13, zmm10, zmm12, 0x96\n",
            "vpslldq zmm14, zmm13, 8\n",
            "vpsrldq zmm13, zmm13, 8\n",
            "vpxorq zmm10, zmm10, zmm14\n",
            "vpxorq zmm12, zmm12, zmm13\n",
            "vpclmulqdq zmm13, zmm10, zmm11, 0x00\n",
            "vpshufd zmm10, zmm10, 0x4e\n",
            "2:\n",
        )
    };
    (tag 3) => {
        concat!(
            "test {ended}, {ended}\n",
            "jz 2f\n",
            "vpxorq zmm10, zmm10, zmm13\n",
            "vpclmulqdq zmm13, zmm10, zmm11, 0x00\n",
            "vpshufd zmm10, zmm10, 0x4e\n",
            "2:\n",
        )
    };
    (tag 4) => {
        concat!(
            "test {ended}, {ended}\n",
            "jz 2f\n",
            "vpternlogq zmm10, zmm13, zmm12, 0x96\n",
            "vpshufb zmm10, zmm10, zmm27\n",
            "vpxorq zmm10, zmm10, [{sum} + {mask}]\n",
            "vextracti64x4 ymm12, zmm10, 1\n",
            "vpxor ymm10, ymm10, ymm12\n",
            "vextracti128 xmm12, ymm10, 1\n",
            "vpxor xmm10, xmm10, xmm12\n",
            "2:\n",
        )
    };
}

/// One instruction of AES for each state, with the round key at `$key`.
macro_rules! round {
    ($instruction:literal, $key:literal, $($i:literal)+) => {
        concat!(
            "vmovdqa64 zmm28, [{keys} + 4*", $key, "]\n",
            $($instruction, " zmm", $i, ", zmm", $i, ", zmm28\n",)+
        )
    };
}

/// Adds a whole vector of text to the keystream.
macro_rules! whole {
    ($i:literal) => {
        concat!(
            "vpxorq zmm",
            $i,
            ", zmm",
            $i,
            ", [{end} + 64*",
            $i,
            "]\n",
            "vmovdqu64 [{end} + 64*",
            $i,
            "], zmm",
            $i,
            "\n",
        )
    };
}

/// Adds the first or the last vector of text to the keystream.
macro_rules! edge {
    ($i:literal, $mask:literal, $place:literal) => {
        concat!(
            "vmovdqu8 zmm16{{",
            $mask,
            "}}{{z}}, [{end} + 64*",
            $i,
            "]\n",
            "vpxorq zmm",
            $i,
            ", zmm",
            $i,
            ", zmm16\n",
            "vmovdqu8 [{end} + 64*",
            $i,
            "]{{",
            $mask,
            "}}, zmm",
            $i,
            "\n",
            "vmovdqa64 [{edges} + ",
            $place,
            "], zmm",
            $i,
            "\n",
        )
    };
}

/// What becomes of the sum.
macro_rules! ended {
    (tag) => {
        "mov {ended}, [{sum} + {powers_of_ended}] /* {out} {start} */"
    };
    (sum) => {
        "mov {ended}, [{sum} + {out}] /* {powers_of_ended} {mask} */"
    };
}

/// A function for one number of vectors, in zmm0 and on: all, without the first, without first
/// and last, the last.
macro_rules! chunk {
    (
        $name:ident, $what:tt, ($($all:literal)+), ($($rest:literal)+), ($($inner:literal)*),
        $last:literal
    ) => {
        /// # Safety
        /// As for [`crypt`].
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,bmi1,bmi2")]
        pub(super) unsafe fn $name(
            text: &Text,
            counters: __m512i,
            steps: &Steps,
            hash: &Hash,
            sum: &mut Sum,
            edges: &mut [__m512i; 2],
        ) -> Output {
            let (first, tag, next): (__m512i, __m512i, __m512i);
            // SAFETY: the caller keeps the contract. Registers are named: for an operand whose
            // result is not used, LLVM prints another one than it has chosen.
            unsafe {
                asm!(
                    $(concat!("vpaddd zmm", $rest, ", zmm0, [{steps} + 64*", $rest, " - 64]"),)+
                    concat!("vpaddd zmm15, zmm0, [{steps} + 64*", $last, "]"),
                    round!("vpxorq", 0, $($all)+),
                    "mov {extra}, [{text} + {text_extra}]",
                    "cmp {extra:e}, 2",
                    "jb 2f",
                    round!("vaesenc", 16, $($all)+),
                    round!("vaesenc", 32, $($all)+),
                    "je 2f",
                    round!("vaesenc", 48, $($all)+),
                    round!("vaesenc", 64, $($all)+),
                    "2:",
                    "shl {extra:e}, 6",
                    "add {keys}, {extra}",
                    "mov {end}, [{hash} + {end_offset}]",
                    "mov {between}, [{hash} + {between_offset}]",
                    "mov {powers}, [{hash} + {powers_offset}]",
                    ended!($what),
                    "shl {between:e}, 4",
                    reduce!(1),
                    round!("vaesenc", 16, $($all)+),
                    reduce!(2),
                    between!(0, "{powers} + 16", "{powers} + 32"),
                    round!("vaesenc", 32, $($all)+),
                    reduce!(3),
                    round!("vaesenc", 48, $($all)+),
                    tag!($what 1),
                    between!(1, "{powers} + 48", "{powers} + 64"),
                    round!("vaesenc", 64, $($all)+),
                    tag!($what 2),
                    round!("vaesenc", 80, $($all)+),
                    between!(2, "{powers} + 80", "{powers} + 96"),
                    round!("vaesenc", 96, $($all)+),
                    tag!($what 3),
                    one_between!(),
                    round!("vaesenc", 112, $($all)+),
                    ends!(),
                    "vmovdqa64 [{sum} + {low}], zmm24",
                    "vmovdqa64 [{sum} + {middle}], zmm25",
                    "vmovdqa64 [{sum} + {high}], zmm26",
                    round!("vaesenc", 128, $($all)+),
                    tag!($what 4),
                    round!("vaesenc", 144, $($all)+),
                    round!("vaesenclast", 160, $($all)+),
                    "mov {end}, [{text} + {text_at}]",
                    "cmp byte ptr [{text} + {text_whole}], 0",
                    "je 2f",
                    whole!(0),
                    $(whole!($inner),)*
                    whole!($last),
                    "jmp 3f",
                    "2:",
                    "kmovq k1, [{text} + {text_masks}]",
                    "kmovq k2, [{text} + {text_masks} + 8]",
                    edge!(0, "k1", 0),
                    $(whole!($inner),)*
                    edge!($last, "k2", 64),
                    "3:",
                    keys = inout(reg) text.keys => _,
                    extra = out(reg) _,
                    steps = in(reg) steps,
                    text = in(reg) text,
                    hash = in(reg) hash,
                    sum = in(reg) sum,
                    edges = in(reg) edges,
                    end = out(reg) _,
                    between = out(reg) _,
                    powers = out(reg) _,
                    ended = out(reg) _,
                    text_extra = const offset_of!(Text, extra),
                    text_whole = const offset_of!(Text, whole),
                    hash_whole = const offset_of!(Hash, whole),
                    text_at = const offset_of!(Text, at),
                    text_masks = const offset_of!(Text, masks),
                    first = const offset_of!(Hash, first),
                    last = const offset_of!(Hash, last),
                    end_offset = const offset_of!(Hash, end),
                    between_offset = const offset_of!(Hash, between),
                    powers_offset = const offset_of!(Hash, powers),
                    packet = const offset_of!(Hash, packet),
                    masks = const offset_of!(Hash, masks),
                    lanes = const offset_of!(Hash, lanes),
                    aad = const offset_of!(Packet, aad),
                    lengths = const offset_of!(Packet, lengths),
                    powers_of_ended = const offset_of!(Sum, powers),
                    out = const offset_of!(Sum, out),
                    start = const offset_of!(Hash, start),
                    mask = const offset_of!(Sum, mask),
                    low = const offset_of!(Sum, products.low),
                    middle = const offset_of!(Sum, products.middle),
                    high = const offset_of!(Sum, products.high),
                    inout("zmm0") counters => first,
                    out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _,
                    out("zmm5") _, out("zmm6") _, out("zmm7") _,
                    out("zmm8") _, out("zmm9") _, out("zmm10") tag,
                    in("zmm11") _mm512_set1_epi64(POLYNOMIAL),
                    out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") next,
                    out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
                    out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
                    out("zmm24") _, out("zmm25") _, out("zmm26") _,
                    in("zmm27") reversed(), out("zmm28") _, out("zmm29") _,
                    out("k1") _, out("k2") _,
                    options(nostack)
                );
            }
            Output {
                counters: next,
                first,
                tag: _mm512_castsi512_si128(tag),
            }
        }
    };
}

/// The hash of a packet becomes its tag.
mod tags {
    use super::*;

    chunk!(two, tag, (0 1), (1), (), 1);
    chunk!(three, tag, (0 1 2), (1 2), (1), 2);
    chunk!(four, tag, (0 1 2 3), (1 2 3), (1 2), 3);
    chunk!(five, tag, (0 1 2 3 4), (1 2 3 4), (1 2 3), 4);
    chunk!(six, tag, (0 1 2 3 4 5), (1 2 3 4 5), (1 2 3 4), 5);
    chunk!(seven, tag, (0 1 2 3 4 5 6), (1 2 3 4 5 6), (1 2 3 4 5), 6);
    chunk!(eight, tag, (0 1 2 3 4 5 6 7), (1 2 3 4 5 6 7), (1 2 3 4 5 6), 7);
}

/// The hash of a packet goes elsewhere.
mod sums {
    use super::*;

    chunk!(two, sum, (0 1), (1), (), 1);
    chunk!(three, sum, (0 1 2), (1 2), (1), 2);
    chunk!(four, sum, (0 1 2 3), (1 2 3), (1 2), 3);
    chunk!(five, sum, (0 1 2 3 4), (1 2 3 4), (1 2 3), 4);
    chunk!(six, sum, (0 1 2 3 4 5), (1 2 3 4 5), (1 2 3 4), 5);
    chunk!(seven, sum, (0 1 2 3 4 5 6), (1 2 3 4 5 6), (1 2 3 4 5), 6);
    chunk!(eight, sum, (0 1 2 3 4 5 6 7), (1 2 3 4 5 6 7), (1 2 3 4 5 6), 7);
}
