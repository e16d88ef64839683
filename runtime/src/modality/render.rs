//! A small picture in a terminal.
use super::{Pixels, Resample, resize};

/// Characters from dark to light.
const RAMP: &[u8] = b" .:-=+*#%@";
/// Widest picture.
const MAX_COLUMNS: usize = 400;

/// The picture in gray, two pixels in each character cell (upper half blocks with 24-bit colours), `columns` wide (1 to 400)
/// and of the right shape. Each line ends with a reset and a line feed.
pub fn ansi_picture(picture: &Pixels, columns: usize) -> String {
    let small = shrink(picture, columns, 1.0);
    let width = small.width();
    let rows: Vec<&[u8]> = small.data().chunks_exact(width).collect();
    let mut out = String::new();
    for pair in rows.chunks(2) {
        for x in 0..width {
            let top = pair[0][x];
            match pair.get(1) {
                Some(below) => {
                    let low = below[x];
                    out.push_str(&format!("\x1b[38;2;{top};{top};{top};48;2;{low};{low};{low}m▀"));
                }
                None => out.push_str(&format!("\x1b[0;38;2;{top};{top};{top}m▀")),
            }
        }
        out.push_str("\x1b[0m\n");
    }
    out
}

/// The same with ten ASCII characters from dark (space) to light (`@`), for terminals without colour and for `NO_COLOR`.
pub fn ascii_picture(picture: &Pixels, columns: usize) -> String {
    // A character cell is about twice as high as wide.
    let small = shrink(picture, columns, 0.5);
    let mut out = String::new();
    for row in small.data().chunks_exact(small.width()) {
        out.extend(row.iter().map(|&v| char::from(RAMP[usize::from(v) * RAMP.len() / 256])));
        out.push('\n');
    }
    out
}

fn shrink(picture: &Pixels, columns: usize, row_scale: f64) -> Pixels {
    let width = columns.clamp(1, MAX_COLUMNS);
    let height = (width as f64 * picture.height() as f64 / picture.width() as f64 * row_scale).round();
    // A very tall picture is cut to what a person would scroll through.
    let height = (height as usize).clamp(1, 2 * MAX_COLUMNS);
    let gray = picture.to_gray();
    resize(&gray, width, height, Resample::Box).unwrap_or(gray)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_picture_shows_dark_left_and_light_right_at_the_asked_width() {
        let picture = Pixels::gray(4, 4, [0, 85, 170, 255].repeat(4)).unwrap();
        assert_eq!(ascii_picture(&picture, 4), " -*@\n -*@\n");
        let wide = ascii_picture(&picture, 20);
        assert!(wide.lines().all(|l| l.len() == 20));
        assert_eq!(wide.lines().count(), 10);
    }

    #[test]
    fn the_coloured_picture_holds_two_rows_a_line_and_resets_at_each_end() {
        let picture = Pixels::gray(2, 3, vec![0, 1, 2, 3, 4, 5]).unwrap();
        let text = ansi_picture(&picture, 2);
        assert_eq!(text.lines().count(), 2);
        assert!(text.starts_with("\x1b[38;2;0;0;0;48;2;2;2;2m▀"));
        assert!(text.lines().all(|l| l.ends_with("\x1b[0m")));
        assert!(text.contains("\x1b[0;38;2;5;5;5m▀"));
        for columns in [0, 1, 400, usize::MAX] {
            ansi_picture(&picture, columns);
            ascii_picture(&picture, columns);
        }
    }
}
