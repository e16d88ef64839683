//! CSV lines of sensor readings → `f32 [1, channels, window]`, as `sensors.json` describes them.
//!
//! There is no standard for this, so `sensors.json` is ours:
//!
//! ```json
//! {
//!   "schema": "hone.sensors/1",
//!   "rate_hz": 50,
//!   "window": 100,
//!   "hop": 50,
//!   "channels": [
//!     {"name": "accel_x", "unit": "m/s^2", "mean": 0.0, "scale": 9.81},
//!     {"name": "temp", "unit": "degC", "mean": 21.5, "scale": 4.2}
//!   ]
//! }
//! ```
//! The model sees `(reading − mean) / scale` of each channel, `window` readings at `rate_hz`; streams move on by `hop`.
//!
//! The CSV has a header line. Columns are found by channel name; others are ignored (note `columns-ignored`). A column
//! `time_s` or `time_ms` (strictly rising) makes the readings be brought to `rate_hz` by straight lines between them (note
//! `resampled`); without one they are taken to be at `rate_hz` already. Empty lines and lines that begin with `#` are
//! skipped. The last `window` readings are taken (note `truncated`); fewer are preceded by the mean (note `padded`).
use serde::Deserialize;

use super::ModalityError;
use crate::{Note, Tensor};

const FILE: &str = "sensors.json";
/// Most readings of one channel, read or resampled.
const MAX_READINGS: usize = 1 << 22;
/// A step this many times the period is a gap worth a note.
const GAP_PERIODS: f64 = 5.0;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    schema: String,
    rate_hz: f64,
    window: usize,
    #[serde(default)]
    hop: Option<usize>,
    channels: Vec<Channel>,
}

/// One channel of `sensors.json`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Channel {
    /// The name of its column.
    pub name: String,
    /// Its unit, for people.
    pub unit: String,
    /// What is subtracted, in `unit`.
    pub mean: f64,
    /// What the rest is divided by, in `unit`; not 0.
    pub scale: f64,
}

/// A `sensors.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct SensorProcessor {
    rate_hz: f64,
    window: usize,
    hop: usize,
    channels: Vec<Channel>,
}

impl SensorProcessor {
    /// Reads and checks a `sensors.json`. `hop` is `window` when absent.
    ///
    /// # Errors
    /// [`ModalityError::Config`] naming the key.
    pub fn from_json(text: &str) -> Result<SensorProcessor, ModalityError> {
        let refuse = |key: &str, reason: String| ModalityError::Config { file: FILE, key: key.into(), reason };
        let d: Description = serde_json::from_str(text).map_err(|e| refuse("(top)", e.to_string()))?;
        if d.schema != "hone.sensors/1" {
            return Err(refuse("schema", format!("'{}' is not hone.sensors/1", d.schema)));
        }
        if !(d.rate_hz.is_finite() && d.rate_hz > 0.0) {
            return Err(refuse("rate_hz", format!("{} is not above 0", d.rate_hz)));
        }
        if d.window == 0 || d.window > MAX_READINGS {
            return Err(refuse("window", format!("{} is not from 1 to {MAX_READINGS}", d.window)));
        }
        let hop = d.hop.unwrap_or(d.window);
        if hop == 0 || hop > d.window {
            return Err(refuse("hop", format!("{hop} is not from 1 to the window of {}", d.window)));
        }
        if d.channels.is_empty() || d.channels.len() > 1024 {
            return Err(refuse("channels", "are not 1 to 1024".into()));
        }
        for (i, c) in d.channels.iter().enumerate() {
            if c.name.is_empty() || d.channels[..i].iter().any(|o| o.name == c.name) {
                return Err(refuse("channels", format!("the name '{}' is empty or used twice", c.name)));
            }
            if !c.mean.is_finite() || !c.scale.is_finite() || c.scale == 0.0 {
                return Err(refuse("channels", format!("'{}' has a mean or scale that cannot be used", c.name)));
            }
        }
        Ok(SensorProcessor { rate_hz: d.rate_hz, window: d.window, hop, channels: d.channels })
    }

    /// The channels, in the order of the tensor.
    pub fn channels(&self) -> &[Channel] {
        &self.channels
    }

    /// Readings from one window of a stream to the next.
    pub fn hop(&self) -> usize {
        self.hop
    }

    /// CSV → the last window, `f32 [1, channels, window]`.
    ///
    /// # Errors
    /// [`ModalityError::Sensor`] naming the line: no header, a channel without a column, a reading that is not a finite
    /// number, time that does not rise, no readings.
    pub fn encode(&self, csv: &str) -> Result<(Tensor, Vec<Note>), ModalityError> {
        let (series, mut notes) = self.read(csv)?;
        let found = series[0].len();
        if found != self.window {
            let code = if found > self.window { "truncated" } else { "padded" };
            notes.push(Note::new(code, format!("{found} readings"), format!("{} readings", self.window)));
        }
        Ok((self.tensor(&series, found)?, notes))
    }

    /// CSV → every whole window of a recording, `hop` readings apart, from the beginning.
    ///
    /// # Errors
    /// As [`SensorProcessor::encode`]. A recording shorter than a window gives none.
    pub fn windows(&self, csv: &str) -> Result<(Vec<Tensor>, Vec<Note>), ModalityError> {
        let (series, notes) = self.read(csv)?;
        let ends = (self.window..=series[0].len()).step_by(self.hop);
        let tensors = ends.map(|end| self.tensor(&series, end)).collect::<Result<_, _>>()?;
        Ok((tensors, notes))
    }

    /// The window that ends before reading `end`, normalised; readings before the first are the mean, which is 0.
    fn tensor(&self, series: &[Vec<f64>], end: usize) -> Result<Tensor, ModalityError> {
        let mut values = Vec::with_capacity(self.channels.len() * self.window);
        for (channel, readings) in self.channels.iter().zip(series) {
            let kept = &readings[end.saturating_sub(self.window)..end];
            values.resize(values.len() + self.window - kept.len(), 0.0);
            values.extend(kept.iter().map(|v| ((v - channel.mean) / channel.scale) as f32));
        }
        Ok(Tensor::f32(&[1, self.channels.len(), self.window], values)?)
    }

    /// Readings of each channel at `rate_hz`, at least one.
    fn read(&self, csv: &str) -> Result<(Vec<Vec<f64>>, Vec<Note>), ModalityError> {
        let refuse = |line: usize, reason: String| ModalityError::Sensor { line, reason };
        let mut lines = (1..).zip(csv.lines()).filter(|(_, l)| !l.trim().is_empty() && !l.starts_with('#'));
        let (header_line, header) = lines.next().ok_or_else(|| refuse(1, "there is no header".into()))?;
        let header: Vec<&str> = header.trim_start_matches('\u{feff}').split(',').map(str::trim).collect();
        let column = |name: &str| header.iter().position(|h| *h == name);
        let mut columns = vec![];
        for channel in &self.channels {
            let missing = || format!("there is no column '{}'; the columns are {}", channel.name, header.join(", "));
            columns.push(column(&channel.name).ok_or_else(|| refuse(header_line, missing()))?);
        }
        let time = column("time_s").map(|c| (c, 1.0)).or(column("time_ms").map(|c| (c, 1e-3)));
        let mut notes = vec![];
        let used = columns.len() + usize::from(time.is_some());
        if header.len() > used {
            notes.push(Note::new("columns-ignored", format!("{} columns", header.len()), format!("{used} columns")));
        }

        let mut series: Vec<Vec<f64>> = vec![vec![]; columns.len()];
        let mut times: Vec<f64> = vec![];
        for (line, text) in lines {
            let fields: Vec<&str> = text.split(',').map(str::trim).collect();
            if fields.len() != header.len() {
                return Err(refuse(line, format!("has {} fields, the header {}", fields.len(), header.len())));
            }
            if series[0].len() >= MAX_READINGS {
                return Err(refuse(line, format!("there are more than {MAX_READINGS} readings")));
            }
            let number = |at: usize| -> Result<f64, ModalityError> {
                let value = fields[at].parse::<f64>().ok().filter(|v| v.is_finite());
                value
                    .ok_or_else(|| refuse(line, format!("'{}' in column '{}' is not a number", fields[at], header[at])))
            };
            if let Some((at, unit)) = time {
                let now = number(at)? * unit;
                if times.last().is_some_and(|&last| now <= last) {
                    return Err(refuse(line, format!("time does not rise: '{}'", fields[at])));
                }
                times.push(now);
            }
            for (readings, &at) in series.iter_mut().zip(&columns) {
                readings.push(number(at)?);
            }
        }
        if series[0].is_empty() {
            return Err(refuse(header_line, "there are no readings after the header".into()));
        }
        if time.is_some() {
            self.to_rate(&times, &mut series, &mut notes)?;
        }
        Ok((series, notes))
    }

    /// Brings the readings to `rate_hz`, from the first time on, by straight lines.
    fn to_rate(&self, times: &[f64], series: &mut [Vec<f64>], notes: &mut Vec<Note>) -> Result<(), ModalityError> {
        let (first, last) = (times[0], times[times.len() - 1]);
        // A hair above, so that rounding of the times does not lose the last reading.
        let steps = ((last - first) * self.rate_hz + 1e-6).floor();
        if steps >= MAX_READINGS as f64 {
            let reason = format!("{} s at {} Hz are more than {MAX_READINGS} readings", last - first, self.rate_hz);
            return Err(ModalityError::Sensor { line: 1, reason });
        }
        let count = steps as usize + 1;
        let moments: Vec<f64> = (0..count).map(|i| first + i as f64 / self.rate_hz).collect();
        // Readings that already stand where they should are not touched: within 1 % of a period.
        let aligned =
            count == times.len() && times.iter().zip(&moments).all(|(t, m)| (t - m).abs() * self.rate_hz < 0.01);
        if aligned {
            return Ok(());
        }
        let widest = times.windows(2).map(|w| w[1] - w[0]).fold(0.0, f64::max);
        if widest * self.rate_hz > GAP_PERIODS {
            notes.push(Note::new("gap-filled", format!("{widest:.3} s without a reading"), "a straight line"));
        }
        for readings in series.iter_mut() {
            let mut k = 0;
            let at = |moment: &f64| {
                while k + 2 < times.len() && times[k + 1] < *moment {
                    k += 1;
                }
                match times.get(k + 1) {
                    None => readings[k],
                    Some(next) => {
                        let share = ((moment - times[k]) / (next - times[k])).clamp(0.0, 1.0);
                        readings[k] + share * (readings[k + 1] - readings[k])
                    }
                }
            };
            *readings = moments.iter().map(at).collect();
        }
        let rate = if times.len() > 1 { (times.len() - 1) as f64 / (last - first) } else { 0.0 };
        notes.push(Note::new("resampled", format!("{rate:.2} Hz"), format!("{} Hz", self.rate_hz)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_channels(window: usize) -> SensorProcessor {
        let text = format!(
            r#"{{"schema":"hone.sensors/1","rate_hz":10,"window":{window},"hop":1,"channels":[
            {{"name":"x","unit":"g","mean":1,"scale":2}},{{"name":"y","unit":"g","mean":0,"scale":1}}]}}"#
        );
        SensorProcessor::from_json(&text).unwrap()
    }

    fn codes(notes: &[Note]) -> Vec<&str> {
        notes.iter().map(|n| n.code.as_str()).collect()
    }

    #[test]
    fn columns_are_found_by_name_normalised_and_the_last_window_is_taken() {
        let csv = "# made by hand\ny,x\n10,1\n20,3\n\n30,5\n";
        let (tensor, notes) = two_channels(2).encode(csv).unwrap();
        assert_eq!(tensor, Tensor::f32(&[1, 2, 2], vec![1.0, 2.0, 20.0, 30.0]).unwrap());
        assert_eq!(codes(&notes), ["truncated"]);
        let (tensor, notes) = two_channels(4).encode(csv).unwrap();
        assert_eq!(tensor.as_f32().unwrap(), [0.0, 0.0, 1.0, 2.0, 0.0, 10.0, 20.0, 30.0]);
        assert_eq!(codes(&notes), ["padded"]);
        let (windows, _) = two_channels(2).windows(csv).unwrap();
        assert_eq!(windows.len(), 2);
        assert_eq!(windows[0].as_f32().unwrap(), [0.0, 1.0, 10.0, 20.0]);
    }

    #[test]
    fn uneven_times_are_brought_to_the_rate_by_straight_lines() {
        // x is 10 t, so every straight line between readings is exact.
        let csv = "time_s,x,y\n0,0,1\n0.05,0.5,1\n0.25,2.5,1\n0.4,4,1\n";
        let (tensor, notes) = two_channels(5).encode(csv).unwrap();
        let expected = [-0.5, 0.0, 0.5, 1.0, 1.5, 1.0, 1.0, 1.0, 1.0, 1.0];
        for (a, b) in tensor.as_f32().unwrap().iter().zip(expected) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
        assert_eq!(notes, [Note::new("resampled", "7.50 Hz", "10 Hz")]);
        let (_, notes) = two_channels(3).encode("time_ms,x,y\n0,0,0\n100,1,0\n200,1,0\n").unwrap();
        assert!(notes.is_empty(), "{notes:?}");
        let (_, notes) = two_channels(11).encode("time_s,x,y,z\n0,0,0,0\n1,1,0,0\n").unwrap();
        assert_eq!(codes(&notes), ["columns-ignored", "gap-filled", "resampled"]);
        let (tensor, _) = two_channels(1).encode("time_s,x,y\n7,3,4\n").unwrap();
        assert_eq!(tensor.as_f32().unwrap(), [1.0, 4.0]);
    }

    #[test]
    fn bad_lines_and_bad_descriptions_are_named() {
        for (csv, line, word) in [
            ("", 1, "header"),
            ("x,y\n", 1, "no readings"),
            ("x,z\n1,2\n", 1, "'y'"),
            ("x,y\n1,2\n1,zwei\n", 3, "'zwei'"),
            ("x,y\n1,NaN\n", 2, "NaN"),
            ("x,y\n1\n", 2, "fields"),
            ("time_s,x,y\n1,0,0\n1,0,0\n", 3, "rise"),
            ("time_s,x,y\n0,0,0\n1e300,0,0\n", 1, "more than"),
        ] {
            match two_channels(2).encode(csv).unwrap_err() {
                ModalityError::Sensor { line: l, reason } => {
                    assert_eq!(l, line, "{csv:?}");
                    assert!(reason.contains(word), "{reason}");
                }
                other => panic!("{other}"),
            }
        }
        for bad in [
            "{}",
            r#"{"schema":"hone.sensors/1","rate_hz":0,"window":1,"channels":[{"name":"x","unit":"","mean":0,"scale":1}]}"#,
            r#"{"schema":"hone.sensors/1","rate_hz":1,"window":0,"channels":[{"name":"x","unit":"","mean":0,"scale":1}]}"#,
            r#"{"schema":"hone.sensors/1","rate_hz":1,"window":1,"channels":[{"name":"x","unit":"","mean":0,"scale":0}]}"#,
            r#"{"schema":"hone.sensors/1","rate_hz":1,"window":1,"channels":[]}"#,
        ] {
            assert!(matches!(SensorProcessor::from_json(bad), Err(ModalityError::Config { .. })), "{bad}");
        }
    }
}
