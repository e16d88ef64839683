//! What a convolution of 8-bit integers needs beside the matrix product: patches in the product's packed form.
//!
//! The image is laid out beforehand so that every tap of the kernel is one offset: padded, and split into as many images as
//! the stride has phases. Output position `p` then reads byte `tap + p` for each tap, also at the positions in the padding
//! between two rows, whose results are dropped. Bytes are `i8`, as the right side of [`crate::qgemm`] has them.

use crate::qgemm::NR;

crate::dispatched! {
    /// Packs the positions `first..` of as many panels as `sums` has sixteens: `out` as [`crate::qgemm::pack`] lays out
    /// `b[k][j] = image[taps[k] + first + j]`, `sums` the sum of each column.
    ///
    /// # Panics
    /// When `image` ends before the last byte of a panel, or `out` is too short.
    pub fn pack_taps(image: &[u8], taps: &[usize], first: usize, out: &mut [i8], sums: &mut [i32]) = pack_taps_any;
    /// `acc[j] = Σ_k w[k] · image[taps[k] + first + j]`.
    ///
    /// # Panics
    /// When `image` ends before the last byte.
    pub fn direct(image: &[u8], taps: &[usize], w: &[i32], first: usize, acc: &mut [i32]) = direct_any;
    /// `to = from ^ flip`: from one signedness to the other, or a copy.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn flipped(from: &[u8], flip: u8, to: &mut [u8]) = flipped_any;
}

#[inline(always)]
fn pack_taps_any(image: &[u8], taps: &[usize], first: usize, out: &mut [i8], sums: &mut [i32]) {
    let steps = taps.len().div_ceil(4);
    for (p, sums) in sums.as_chunks_mut::<NR>().0.iter_mut().enumerate() {
        *sums = [0; NR];
        let at = first + p * NR;
        let panel = out[p * steps * 4 * NR..][..steps * 4 * NR].as_chunks_mut::<{ 4 * NR }>().0;
        for (group, taps) in panel.iter_mut().zip(taps.chunks(4)) {
            let mut rows = [[0u8; NR]; 4];
            for (row, tap) in rows.iter_mut().zip(taps) {
                row.copy_from_slice(&image[tap + at..][..NR]);
            }
            for j in 0..NR {
                for q in 0..4 {
                    group[4 * j + q] = rows[q][j] as i8;
                }
            }
            for j in 0..NR {
                sums[j] += i32::from(rows[0][j] as i8)
                    + i32::from(rows[1][j] as i8)
                    + i32::from(rows[2][j] as i8)
                    + i32::from(rows[3][j] as i8);
            }
        }
    }
}

#[inline(always)]
fn direct_any(image: &[u8], taps: &[usize], w: &[i32], first: usize, acc: &mut [i32]) {
    const BLOCK: usize = 64;
    let mut at = first;
    for block in acc.chunks_mut(BLOCK) {
        if let Ok(block) = <&mut [i32; BLOCK]>::try_from(&mut *block) {
            let mut sums = [0i32; BLOCK];
            for (tap, w) in taps.iter().zip(w) {
                let x = &image[tap + at..][..BLOCK];
                for j in 0..BLOCK {
                    sums[j] += i32::from(x[j] as i8) * w;
                }
            }
            *block = sums;
        } else {
            block.fill(0);
            for (tap, w) in taps.iter().zip(w) {
                block.iter_mut().zip(&image[tap + at..]).for_each(|(y, &x)| *y += i32::from(x as i8) * w);
            }
        }
        at += BLOCK;
    }
}

#[inline(always)]
fn flipped_any(from: &[u8], flip: u8, to: &mut [u8]) {
    assert_eq!(from.len(), to.len());
    to.iter_mut().zip(from).for_each(|(t, f)| *t = f ^ flip);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qgemm;

    #[test]
    fn packed_taps_are_the_packed_matrix_of_what_they_read_and_direct_is_its_product() {
        let image: Vec<u8> = (0..400).map(|i| (i * 37 % 251) as u8).collect();
        for taps in [vec![0], vec![0, 1, 2, 20, 21, 22, 40, 41, 42], vec![5, 9, 100, 7]] {
            let (k, n, first) = (taps.len(), 96, 3);
            let at = |kk: usize, j: usize| image[taps[kk] + first + j] as i8;
            let (mut expected, mut sums) = (vec![0; qgemm::packed_len(n, k)], vec![0; n]);
            qgemm::pack(n, k, at, &mut expected, &mut sums);
            let (mut found, mut found_sums) = (vec![1; qgemm::packed_len(n, k)], vec![1; n]);
            pack_taps(&image, &taps, first, &mut found, &mut found_sums);
            assert_eq!((found, found_sums), (expected, sums));
            let w: Vec<i32> = (0..k as i32).map(|i| i * 7 - 11).collect();
            let mut acc = vec![9; n - 5];
            direct(&image, &taps, &w, first, &mut acc);
            for (j, acc) in acc.iter().enumerate() {
                assert_eq!(*acc, (0..k).map(|kk| w[kk] * i32::from(at(kk, j))).sum::<i32>());
            }
        }
    }
}
