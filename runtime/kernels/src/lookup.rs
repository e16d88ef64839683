//! Functions of one byte: tables of 256.

/// How a table is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `vpermi2b` on 64 bytes (AVX512-VBMI: Intel Ice Lake, AMD Zen 4, and later).
    Vbmi,
    /// `tbl` and `tbx` on 16 bytes: every 64-bit Arm.
    Neon,
    /// One by one.
    Any,
}

impl Form {
    /// Every form, best first.
    pub const ALL: [Form; 3] = [Form::Vbmi, Form::Neon, Form::Any];

    /// Whether this CPU has it.
    pub fn available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Form::Vbmi => crate::isa::Isa::Avx512.available() && std::arch::is_x86_feature_detected!("avx512vbmi"),
            #[cfg(not(target_arch = "x86_64"))]
            Form::Vbmi => false,
            #[cfg(target_arch = "aarch64")]
            Form::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(not(target_arch = "aarch64"))]
            Form::Neon => false,
            Form::Any => true,
        }
    }

    /// The best this CPU has.
    pub fn best() -> Form {
        Form::ALL.into_iter().find(|f| f.available()).unwrap_or(Form::Any)
    }
}

/// `y[i] = table[x[i]]`.
///
/// # Panics
/// When `y` is shorter than `x`.
pub fn lookup(table: &[u8; 256], x: &[u8], y: &mut [u8]) {
    assert!(y.len() >= x.len(), "y is shorter than x");
    // SAFETY: both have as many bytes.
    unsafe { on(Form::best(), table, x.as_ptr(), y.as_mut_ptr(), x.len()) }
}

/// [`lookup`] of `n` bytes; `x` and `y` may be the same.
///
/// # Safety
/// The bytes exist; `x` and `y` are the same or do not overlap.
pub(crate) unsafe fn on(form: Form, table: &[u8; 256], x: *const u8, y: *mut u8, n: usize) {
    // SAFETY: the caller's promise; a form that is not there is not taken.
    let done = unsafe {
        match form {
            #[cfg(target_arch = "x86_64")]
            Form::Vbmi if form.available() => vbmi(table, x, y, n),
            #[cfg(target_arch = "aarch64")]
            Form::Neon if form.available() => neon(table, x, y, n),
            _ => 0,
        }
    };
    for i in done..n {
        // SAFETY: the caller's promise.
        unsafe { *y.add(i) = table[usize::from(*x.add(i))] };
    }
}

/// Returns how many are done: all.
///
/// # Safety
/// As [`on`]; the CPU has the instructions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
unsafe fn vbmi(table: &[u8; 256], x: *const u8, y: *mut u8, n: usize) -> usize {
    use std::arch::x86_64::*;
    // SAFETY: the table has four times 64 bytes; what is masked is neither read nor written.
    unsafe {
        let quarter = |i: usize| _mm512_loadu_si512(table.as_ptr().add(64 * i).cast());
        let (a, b, c, d) = (quarter(0), quarter(1), quarter(2), quarter(3));
        let mut i = 0;
        while i < n {
            let left = n - i;
            let mask = if left >= 64 { u64::MAX } else { (1 << left) - 1 };
            let v = _mm512_maskz_loadu_epi8(mask, x.add(i).cast());
            let (low, high) = (_mm512_permutex2var_epi8(a, v, b), _mm512_permutex2var_epi8(c, v, d));
            let found = _mm512_mask_blend_epi8(_mm512_movepi8_mask(v), low, high);
            if left >= 64 {
                _mm512_storeu_si512(y.add(i).cast(), found);
            } else {
                _mm512_mask_storeu_epi8(y.add(i).cast(), mask, found);
            }
            i += 64;
        }
    }
    n
}

/// Returns how many are done: whole vectors.
///
/// # Safety
/// As [`on`]; the CPU has the instructions.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn neon(table: &[u8; 256], x: *const u8, y: *mut u8, n: usize) -> usize {
    use std::arch::aarch64::*;
    let whole = n / 16 * 16;
    // SAFETY: the table has four times 64 bytes, and only whole vectors are taken.
    unsafe {
        let quarters = [0, 64, 128, 192].map(|at| vld1q_u8_x4(table.as_ptr().add(at)));
        for i in (0..whole).step_by(16) {
            let v = vld1q_u8(x.add(i));
            // An index outside of a quarter gives 0, or leaves what is there.
            let mut found = vqtbl4q_u8(quarters[0], v);
            found = vqtbx4q_u8(found, quarters[1], vsubq_u8(v, vdupq_n_u8(64)));
            found = vqtbx4q_u8(found, quarters[2], vsubq_u8(v, vdupq_n_u8(128)));
            found = vqtbx4q_u8(found, quarters[3], vsubq_u8(v, vdupq_n_u8(192)));
            vst1q_u8(y.add(i), found);
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_that_of_the_table_in_every_form_and_in_place() {
        let table: [u8; 256] = std::array::from_fn(|i| (i * 167 + 41) as u8);
        let mut ran = 0;
        for form in Form::ALL.into_iter().filter(|f| f.available()) {
            for n in [0, 1, 15, 16, 17, 63, 64, 65, 300] {
                let x: Vec<u8> = (0..n).map(|i| (i * 7 + n) as u8).collect();
                let want: Vec<u8> = x.iter().map(|&v| table[usize::from(v)]).collect();
                let mut y = vec![9; n + 70];
                // SAFETY: there is room.
                unsafe { on(form, &table, x.as_ptr(), y.as_mut_ptr(), n) };
                assert_eq!(y[..n], want, "{form:?}");
                assert!(y[n..].iter().all(|&v| v == 9), "{form:?} wrote past its output");
                let mut same = x.clone();
                // SAFETY: both are the same bytes.
                unsafe { on(form, &table, same.as_ptr(), same.as_mut_ptr(), n) };
                assert_eq!(same, want, "{form:?} in place");
                ran += 1;
            }
        }
        assert!(ran >= 9);
    }
}
