//! Loops of single instructions and of the mixtures that AES-GCM and ChaCha20-Poly1305 are
//! made of, to learn how many of each a core finishes in a cycle.

use std::arch::asm;
use std::arch::is_x86_feature_detected;

use super::ticks;

/// Memory for the loops that load and store, on a page boundary.
#[repr(C, align(4096))]
pub(crate) struct Scratch([u8; 4096]);

impl Scratch {
    /// Zeroes.
    pub(crate) fn new() -> Box<Self> {
        Box::new(Self([0; 4096]))
    }
}

/// A loop of known content.
#[derive(Debug)]
pub(crate) struct Loop {
    /// What is in it.
    pub(crate) name: &'static str,
    /// How many instructions of the kind that is counted one turn has.
    pub(crate) per_turn: u64,
    available: fn() -> bool,
    run: fn(u64, &mut Scratch) -> u64,
}

impl Loop {
    /// The loop with this name.
    pub(crate) fn by_name(name: &str) -> Option<&'static Loop> {
        LOOPS.iter().find(|candidate| candidate.name == name)
    }

    /// Ticks that `turns` turns take; `None` if this CPU lacks the instructions.
    pub(crate) fn ticks(&self, turns: u64, scratch: &mut Scratch) -> Option<u64> {
        (self.available)().then(|| (self.run)(turns.max(1), scratch))
    }
}

/// A function that runs a body of instructions.
///
/// The body may use all vector registers and read and write the 4,096 bytes at `rsi`; it
/// must keep every general register. It is called only after `Loop::ticks` has asked the CPU
/// for the features that the table names beside it.
macro_rules! body {
    ($body:expr) => {{
        #[inline(never)]
        fn run(turns: u64, scratch: &mut Scratch) -> u64 {
            let start = ticks();
            // SAFETY: the bodies in this file keep to the rules above: they touch only the
            // scratch memory, which is borrowed mutably here, and vector registers, all of
            // which are named as overwritten; `turns` is at least 1.
            unsafe {
                asm!(
                    ".p2align 6",
                    "2:",
                    $body,
                    "dec {turns}",
                    "jnz 2b",
                    turns = inout(reg) turns => _,
                    in("rsi") scratch.0.as_mut_ptr(),
                    out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _,
                    out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
                    out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                    out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
                    out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
                    out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
                    out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _,
                    out("zmm28") _, out("zmm29") _, out("zmm30") _, out("zmm31") _,
                    options(nostack),
                );
            }
            ticks() - start
        }
        run
    }};
}

/// Twelve independent instructions; `\r` is the number of the register.
macro_rules! twelve {
    ($($line:expr),+) => {
        body!(concat!(".irp r,0,1,2,3,4,5,6,7,8,9,10,11\n", $($line),+, "\n.endr"))
    };
}

/// `vaesenc` on the registers with these numbers.
macro_rules! aes {
    ($w:literal, $numbers:literal) => {
        concat!(
            ".irp r,",
            $numbers,
            "\n vaesenc ",
            $w,
            "\\r,",
            $w,
            "\\r,",
            $w,
            "15\n.endr\n"
        )
    };
}

/// One `vpclmulqdq`.
macro_rules! clmul {
    ($w:literal, $to:literal) => {
        concat!("vpclmulqdq ", $w, $to, ",", $w, "14,", $w, "15,0x11\n")
    };
}

/// The cryptographic loops of one register width.
macro_rules! width {
    ($w:literal, $available:expr) => {
        [
            Loop {
                name: concat!("vaesenc ", $w),
                per_turn: 12,
                available: $available,
                run: twelve!("vaesenc ", $w, "\\r,", $w, "\\r,", $w, "15"),
            },
            Loop {
                name: concat!("vpclmulqdq ", $w),
                per_turn: 12,
                available: $available,
                run: twelve!("vpclmulqdq ", $w, "\\r,", $w, "14,", $w, "15,0x11"),
            },
            Loop {
                name: concat!("10 vaesenc + 4 vpclmulqdq ", $w),
                per_turn: 14,
                available: $available,
                run: body!(concat!(
                    aes!($w, "0,1,2"),
                    clmul!($w, "12"),
                    aes!($w, "3,4"),
                    clmul!($w, "13"),
                    aes!($w, "5,6,7"),
                    clmul!($w, "12"),
                    aes!($w, "8,9"),
                    clmul!($w, "13"),
                )),
            },
            Loop {
                name: concat!("12 vaesenc + 4 vpclmulqdq ", $w),
                per_turn: 16,
                available: $available,
                run: body!(concat!(
                    aes!($w, "0,1,2"),
                    clmul!($w, "12"),
                    aes!($w, "3,4,5"),
                    clmul!($w, "13"),
                    aes!($w, "6,7,8"),
                    clmul!($w, "12"),
                    aes!($w, "9,10,11"),
                    clmul!($w, "13"),
                )),
            },
            Loop {
                name: concat!("14 vaesenc + 4 vpclmulqdq ", $w),
                per_turn: 18,
                available: $available,
                run: body!(concat!(
                    aes!($w, "0,1,2,3"),
                    clmul!($w, "12"),
                    aes!($w, "4,5,6"),
                    clmul!($w, "13"),
                    aes!($w, "7,8,9,10"),
                    clmul!($w, "12"),
                    aes!($w, "11,0,1"),
                    clmul!($w, "13"),
                )),
            },
        ]
    };
}

/// The instructions of four ChaCha20 quarter rounds on 16 blocks (RFC 8439 section 2.1), with
/// whatever stands between their steps.
macro_rules! quarter_rounds {
    ($between:expr) => {
        concat!(
            quarter_rounds!("0,1,2,3", "4", "12,13,14,15", "16"),
            $between,
            quarter_rounds!("8,9,10,11", "12", "4,5,6,7", "12"),
            $between,
            quarter_rounds!("0,1,2,3", "4", "12,13,14,15", "8"),
            $between,
            quarter_rounds!("8,9,10,11", "12", "4,5,6,7", "7"),
            $between,
        )
    };
    ($sum:literal, $addend:literal, $mixed:literal, $by:literal) => {
        concat!(
            ".irp r,",
            $sum,
            "\n vpaddd zmm\\r,zmm\\r,zmm",
            $addend,
            "\n.endr\n",
            ".irp r,",
            $mixed,
            "\n vpxord zmm\\r,zmm\\r,zmm31\n.endr\n",
            ".irp r,",
            $mixed,
            "\n vprold zmm\\r,zmm\\r,",
            $by,
            "\n.endr\n",
        )
    };
}

/// Two of the multiply-adds that Poly1305 needs for the bytes of a double round: 8 lanes
/// take 9 low and 9 high products for 128 bytes, a double round is the tenth part of 1,024.
macro_rules! poly1305_products {
    () => {
        "vpmadd52luq zmm16,zmm28,zmm29\n vpmadd52huq zmm17,zmm28,zmm29\n"
    };
}

fn has_aes_xmm() -> bool {
    is_x86_feature_detected!("avx")
        && is_x86_feature_detected!("aes")
        && is_x86_feature_detected!("pclmulqdq")
}

fn has_aes_ymm() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
}

fn has_aes_zmm() -> bool {
    has_aes_ymm() && has_zmm()
}

fn has_zmm() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl")
}

fn has_ifma() -> bool {
    has_zmm() && is_x86_feature_detected!("avx512ifma")
}

const ZMM: [Loop; 5] = width!("zmm", has_aes_zmm);
const YMM: [Loop; 5] = width!("ymm", has_aes_ymm);
const XMM: [Loop; 5] = width!("xmm", has_aes_xmm);

/// Every loop.
pub(crate) const LOOPS: &[Loop] = &{
    let [z0, z1, z2, z3, z4] = ZMM;
    let [y0, y1, y2, y3, y4] = YMM;
    let [x0, x1, x2, x3, x4] = XMM;
    [
        z0,
        z1,
        z2,
        z3,
        z4,
        y0,
        y1,
        y2,
        y3,
        y4,
        x0,
        x1,
        x2,
        x3,
        x4,
        Loop {
            name: "vpxorq zmm",
            per_turn: 12,
            available: has_zmm,
            run: twelve!("vpxorq zmm\\r,zmm30,zmm31"),
        },
        Loop {
            name: "vpshufd zmm",
            per_turn: 12,
            available: has_zmm,
            run: twelve!("vpshufd zmm\\r,zmm30,0x4e"),
        },
        Loop {
            name: "load zmm",
            per_turn: 12,
            available: has_zmm,
            run: twelve!("vmovdqu64 zmm\\r,[rsi+64*\\r]"),
        },
        Loop {
            name: "load zmm across lines",
            per_turn: 12,
            available: has_zmm,
            run: twelve!("vmovdqu64 zmm\\r,[rsi+64*\\r+16]"),
        },
        Loop {
            name: "broadcast 16 bytes to zmm",
            per_turn: 12,
            available: has_zmm,
            run: twelve!("vbroadcasti32x4 zmm\\r,[rsi+16*\\r]"),
        },
        Loop {
            name: "store zmm",
            per_turn: 12,
            available: has_zmm,
            run: twelve!("vmovdqu64 [rsi+64*\\r],zmm\\r"),
        },
        Loop {
            name: "store zmm across lines",
            per_turn: 12,
            available: has_zmm,
            run: twelve!("vmovdqu64 [rsi+64*\\r+16],zmm\\r"),
        },
        Loop {
            name: "vpmadd52luq zmm",
            per_turn: 12,
            available: has_ifma,
            run: twelve!("vpmadd52luq zmm\\r,zmm30,zmm31"),
        },
        Loop {
            name: "ChaCha20 double round of 16 blocks",
            per_turn: 1,
            available: has_zmm,
            run: body!(concat!(quarter_rounds!(""), quarter_rounds!(""))),
        },
        Loop {
            name: "ChaCha20 double round of 16 blocks, Poly1305 products",
            per_turn: 1,
            available: has_ifma,
            run: body!(concat!(
                quarter_rounds!(poly1305_products!()),
                quarter_rounds!(poly1305_products!()),
            )),
        },
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_available_loop_runs() {
        let mut scratch = Scratch::new();
        for entry in LOOPS {
            if let Some(ticks) = entry.ticks(100, &mut scratch) {
                assert!(ticks > 0, "{}", entry.name);
            }
        }
    }
}
