//! One body, compiled once for each instruction set: the loops here are written so that the compiler vectorises them,
//! and what differs between CPUs is only the features it may use.

/// Instruction sets a body is compiled for, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// What the crate as a whole is compiled for.
    Any,
}

impl Isa {
    /// Every instruction set, best first.
    pub const ALL: [Isa; 3] = [Isa::Avx512, Isa::Avx2, Isa::Any];

    /// Whether this CPU has it.
    pub fn available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512dq")
                    && std::arch::is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
                    && std::arch::is_x86_feature_detected!("f16c")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx512 | Isa::Avx2 => false,
            Isa::Any => true,
        }
    }

    /// The best this CPU has.
    pub fn best() -> Isa {
        Isa::ALL.into_iter().find(|i| i.available()).unwrap_or(Isa::Any)
    }
}

/// How a product with packed weights is computed: an instruction set, and for weights of bf16 perhaps instructions that
/// multiply pairs of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Multiply-adds of `f32`; bf16 is widened when it is loaded.
    Floats(Isa),
    /// `tdpbf16ps` on tiles of 16 rows of 64 bytes (Intel Sapphire Rapids and later).
    AmxBf16,
    /// `vdpbf16ps` on 64 bytes (Intel Cooper Lake and Sapphire Rapids, AMD Zen 4, and later).
    Avx512Bf16,
    /// `bfmmla` on 16 bytes (Armv8.6: Neoverse V1 and N2, Cortex-A510, A710 and later).
    Bfmmla,
    /// `bfdot` on 16 bytes: the same CPUs.
    Bfdot,
}

impl Form {
    /// Every form, best first.
    pub const ALL: [Form; 7] = [
        Form::AmxBf16,
        Form::Avx512Bf16,
        Form::Bfmmla,
        Form::Bfdot,
        Form::Floats(Isa::Avx512),
        Form::Floats(Isa::Avx2),
        Form::Floats(Isa::Any),
    ];

    /// Whether this CPU has it.
    pub fn available(self) -> bool {
        match self {
            Form::Floats(isa) => isa.available(),
            #[cfg(target_arch = "x86_64")]
            Form::AmxBf16 => Form::Avx512Bf16.available() && crate::amx::pairs(),
            #[cfg(target_arch = "x86_64")]
            Form::Avx512Bf16 => Isa::Avx512.available() && std::arch::is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "aarch64")]
            Form::Bfmmla | Form::Bfdot => std::arch::is_aarch64_feature_detected!("bf16"),
            #[cfg(not(target_arch = "x86_64"))]
            Form::AmxBf16 | Form::Avx512Bf16 => false,
            #[cfg(not(target_arch = "aarch64"))]
            Form::Bfmmla | Form::Bfdot => false,
        }
    }

    /// The best this CPU has.
    pub fn best() -> Form {
        Form::ALL.into_iter().find(|f| f.available()).unwrap_or(Form::Floats(Isa::Any))
    }

    /// Whether it multiplies bf16 without widening it.
    pub fn multiplies_bf16(self) -> bool {
        !matches!(self, Form::Floats(_))
    }

    /// What computes everything else.
    pub fn isa(self) -> Isa {
        match self {
            Form::Floats(isa) => isa,
            Form::AmxBf16 | Form::Avx512Bf16 => Isa::Avx512,
            Form::Bfmmla | Form::Bfdot => Isa::Any,
        }
    }
}

/// Defines `fn NAME(isa, …)`, which runs an `#[inline(always)]` function of the same arguments compiled for `isa`, or
/// for the whole crate's features where this CPU has not got it.
macro_rules! on_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident = $body:path; ($($arg:ident: $ty:ty),* $(,)?)) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name(isa: $crate::isa::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $ty),*) {
                    $body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $ty),*) {
                    $body($($arg),*)
                }
                if isa.available() {
                    match isa {
                        // SAFETY: `available` has just detected the features the function is compiled for.
                        $crate::isa::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                        // SAFETY: as above.
                        $crate::isa::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                        $crate::isa::Isa::Any => {}
                    }
                }
            }
            let _ = isa;
            $body($($arg),*)
        }
    };
}
pub(crate) use on_isa;
