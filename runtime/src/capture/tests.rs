//! Whole sources, with small programs as their producers.
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::mjpeg::tests::picture;
use super::*;
#[cfg(all(feature = "gpio", target_os = "linux"))]
use crate::gpio::GpioError;
use crate::{Class, Classified};

/// Generous: the machine that runs the tests may be busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// A directory with a shell script in it, and the spec that runs it. The script finds its files beside it.
struct Script {
    directory: tempfile::TempDir,
}

impl Script {
    fn new(body: &str) -> Script {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("producer"), format!("cd \"$(dirname \"$0\")\" || exit 9\n{body}\n")).unwrap();
        Script { directory }
    }

    fn file(self, name: &str, bytes: impl AsRef<[u8]>) -> Script {
        fs::write(self.path(name), bytes).unwrap();
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn open(&self, medium: Medium, keys: &str) -> Box<dyn Source> {
        open(medium, &format!("{keys}exec:sh '{}'", self.path("producer").display())).unwrap()
    }
}

fn frame(source: &mut dyn Source) -> Frame {
    match source.next(PATIENCE) {
        Ok(Poll::Frame(frame)) => frame,
        other => panic!("{other:?} instead of a frame; {:?}; {:?}", source.status(), source.events()),
    }
}

fn encoded(frame: &Frame) -> &[u8] {
    match &frame.kind {
        Kind::Image(Picture::Encoded(bytes)) => bytes,
        other => panic!("{other:?}"),
    }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process runs; one that is dead and only not yet reaped by whoever inherited it does not.
fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

fn pid(path: &Path) -> String {
    wait_until("the process number", || fs::read_to_string(path).is_ok_and(|text| text.ends_with('\n')));
    fs::read_to_string(path).unwrap()
}

#[test]
fn a_camera_that_dies_is_started_again_and_its_pictures_go_on() {
    let script = Script::new("cat frame; echo 'cable came off' >&2; exit 3").file("frame", picture(1, 100));
    let mut source = script.open(Medium::Image, "");
    for n in 0..3 {
        let frame = frame(&mut *source);
        assert_eq!((encoded(&frame), frame.seq), (&picture(1, 100)[..], n));
    }
    let status = source.status();
    assert!(status.starts >= 3, "{status:?}");
    assert_eq!(status.last_words.as_deref(), Some("cable came off"));
    let told: Vec<_> = source.events().iter().map(|event| event.what.to_string()).collect();
    assert!(told.iter().any(|t| t.contains("exit status: 3") && t.contains("cable came off")), "{told:?}");
    assert!(told.contains(&"starting again in 100 ms".into()), "{told:?}");
    assert!(told.contains(&"starting again in 200 ms".into()), "{told:?}");
}

#[test]
fn a_camera_that_falls_silent_is_ended_reported_and_started_again() {
    let script = Script::new("cat frame; echo $$ >> pids; exec sleep 1000").file("frame", picture(1, 100));
    let mut source = script.open(Medium::Image, "stall=0.5,");
    frame(&mut *source);
    let first = pid(&script.path("pids"));
    frame(&mut *source);
    assert!(!runs(&first), "the silent one is still there");
    assert_eq!(source.status().stalls, 1);
    assert!(source.events().iter().any(|event| matches!(event.what, What::Stalled { .. })));
}

#[test]
fn a_stream_of_garbage_counts_as_silence_and_a_source_that_never_gave_anything_gives_up() {
    let script = Script::new("echo 'no pictures here' >&2; while :; do printf '%0512d' 7; sleep 0.01; done");
    let mut source = script.open(Medium::Image, "stall=0.3,tries=2,");
    let error = loop {
        match source.next(PATIENCE) {
            Ok(Poll::Nothing) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.class(), Class::Device);
    assert!(error.to_string().contains("no pictures here"), "{error}");
    let status = source.status();
    assert!(status.skipped_bytes >= 1024 && status.stalls == 2 && status.came == 0, "{status:?}");
    assert_eq!(status.state, State::Ended);
    assert_eq!(source.next(PATIENCE), Ok(Poll::Ended));
}

#[test]
fn a_producer_that_closes_at_once_is_tried_with_growing_pauses_and_then_given_up_with_its_last_words() {
    let begun = Instant::now();
    let script = Script::new("echo 'no camera' >&2; exit 1");
    let mut source = script.open(Medium::Image, "tries=3,");
    let error = source.next(PATIENCE).unwrap_err();
    assert!(begun.elapsed() >= Duration::from_millis(300), "100 ms and 200 ms of pause");
    assert!(matches!(&error, CaptureError::GivenUp { attempts: 3, last, .. } if last.contains("no camera")), "{error}");
}

#[test]
fn a_flood_is_bounded_and_what_is_dropped_is_counted() {
    let flood: Vec<u8> = (0..200).flat_map(|n| picture(n, 2000)).collect();
    let script = Script::new("while :; do cat flood; done").file("flood", flood);
    let mut source = script.open(Medium::Image, "keep=2,");
    let (mut delivered, mut dropped) = (0, 0);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        let frame = frame(&mut *source);
        assert_eq!(frame.seq, delivered + dropped + frame.dropped_before, "every frame is accounted for");
        delivered += 1;
        dropped += frame.dropped_before;
        std::thread::sleep(Duration::from_millis(50));
    }
    let status = source.status();
    let rate = status.came as f64 / begun.elapsed().as_secs_f64();
    println!("{rate:.0} frames a second came, {} delivered, {} dropped", status.delivered, status.dropped);
    assert!(rate > 1000.0, "{rate} frames a second are no flood");
    assert!(status.came - status.dropped - status.delivered <= 2, "{status:?}");
    assert!(dropped > 0 && status.dropped >= dropped, "{status:?}");
}

#[test]
fn a_picture_too_large_is_refused_and_noted_on_the_next() {
    let script =
        Script::new("cat huge small; sleep 1000").file("huge", picture(1, 3_000_000)).file("small", picture(2, 10));
    let mut source = script.open(Medium::Image, "max_bytes=100000,");
    let frame = frame(&mut *source);
    assert_eq!(encoded(&frame), picture(2, 10));
    assert_eq!(frame.notes, [Note::new("refused", "1 before this", "0")]);
    assert_eq!(source.status().refused, 1);
}

#[test]
fn dropping_a_source_leaves_no_process_behind_not_even_one_that_ignores_being_asked() {
    let script = Script::new(
        "trap '' TERM; sh -c 'trap \"\" TERM; echo $$ > grandchild; while :; do sleep 1; done' & echo $$ > child; cat frame; wait",
    )
    .file("frame", picture(1, 10));
    let mut source = script.open(Medium::Image, "");
    frame(&mut *source);
    let family = [pid(&script.path("child")), pid(&script.path("grandchild"))];
    assert!(family.iter().all(|pid| runs(pid)));
    let begun = Instant::now();
    drop(source);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    wait_until("the end of the whole family", || !family.iter().any(|pid| runs(pid)));
}

#[test]
fn raw_pictures_and_microphone_windows_come_from_children_with_one_frame_for_each() {
    let script = Script::new("cat pixels; sleep 1000").file("pixels", [7; 28 * 28]);
    let mut source = script.open(Medium::Image, "format=raw:gray:28x28,");
    let wanted = Kind::Image(Picture::Raw { width: 28, height: 28, channels: 1, data: vec![7; 784] });
    assert_eq!(frame(&mut *source).kind, wanted);

    let script = Script::new("cat sound; sleep 1000").file("sound", [0x00, 0x40].repeat(12_000));
    let mut source = script.open(Medium::Audio, "length=0.5,hop=0.25,format=raw:s16le:16000:1,");
    for _ in 0..2 {
        let Kind::Audio(Sound::Pcm(pcm)) = frame(&mut *source).kind else { panic!("no samples") };
        assert_eq!((pcm.rate_hz, pcm.samples.len(), pcm.samples[0]), (16_000, 8000, 0.5));
    }
    let level = source.status().level_dbfs.unwrap();
    assert!((level - -6.02).abs() < 0.01, "{level} dBFS");
}

#[test]
fn readings_come_in_windows_and_lines_as_triggers() {
    let script = Script::new("printf 'x,y\\n1,2\\n3,4\\n5,6\\n'; sleep 1000");
    let mut source = script.open(Medium::Sensor, "length=2,hop=1,");
    assert_eq!(frame(&mut *source).kind, Kind::Sensor("x,y\n1,2\n3,4\n".into()));
    assert_eq!(frame(&mut *source).kind, Kind::Sensor("x,y\n3,4\n5,6\n".into()));

    let script = Script::new("echo now");
    let mut source = script.open(Medium::Trigger, "restart=no,");
    assert_eq!(frame(&mut *source).kind, Kind::Trigger(Trigger { line: "now".into(), pressed: true }));
    assert_eq!(source.next(PATIENCE), Ok(Poll::Ended));
}

#[test]
fn a_named_pipe_outlives_its_writers_and_a_file_ends() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("readings");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let mut source = open(Medium::Sensor, &format!("length=1,columns=v,pipe:{}", path.display())).unwrap();
    for n in 0..2 {
        fs::write(&path, format!("{n}\n")).unwrap();
        assert_eq!(frame(&mut *source).kind, Kind::Sensor(format!("v\n{n}\n")));
    }
    drop(source);
    let path = directory.path().join("file");
    fs::write(&path, "v\n1\n").unwrap();
    let mut source = open(Medium::Sensor, &format!("length=1,pipe:{}", path.display())).unwrap();
    assert_eq!(frame(&mut *source).kind, Kind::Sensor("v\n1\n".into()));
    assert_eq!(source.next(PATIENCE), Ok(Poll::Ended));
}

#[test]
fn files_come_in_order_with_their_names_and_none_is_lost_without_a_rate() {
    let script = Script::new("").file("b.PNG", "bb").file("a.jpg", "a").file("c.txt", "c").file("d.png", "");
    for name in ["e.jpg", "f.jpg"] {
        fs::write(script.path(name), name).unwrap();
    }
    let mut source = open(Medium::Image, &format!("file:{}", script.directory.path().display())).unwrap();
    for (seq, name) in ["a.jpg", "b.PNG", "e.jpg", "f.jpg"].iter().enumerate() {
        let frame = frame(&mut *source);
        assert_eq!((frame.origin.clone(), frame.seq), (Some(script.path(name)), seq as u64));
    }
    assert_eq!(source.next(PATIENCE), Ok(Poll::Ended));
    assert_eq!(source.status().refused, 1, "the empty one");
}

#[test]
fn a_rate_is_kept_and_a_list_can_be_repeated() {
    let script = Script::new("").file("a.jpg", "a").file("b.jpg", "b").file("list", "# two\na.jpg\nb.jpg\n");
    let spec = format!("fps=20,repeat=yes,keep=100,file:@{}", script.path("list").display());
    let mut source = open(Medium::Image, &spec).unwrap();
    let frames: Vec<_> = (0..21).map(|_| frame(&mut *source)).collect();
    assert_eq!(encoded(&frames[20]), b"a");
    let took = frames[20].at - frames[0].at;
    assert!(took >= Duration::from_millis(950), "{took:?} for 20 periods of 50 ms");
}

#[test]
fn a_recording_of_readings_is_given_whole_or_in_windows() {
    let script = Script::new("").file("r.csv", "v\n1\n2\n3\n");
    let path = script.path("r.csv");
    let mut source = open(Medium::Sensor, &format!("file:{}", path.display())).unwrap();
    assert_eq!(frame(&mut *source).kind, Kind::Sensor("v\n1\n2\n3\n".into()));
    let mut source = open(Medium::Sensor, &format!("length=1,file:{}", path.display())).unwrap();
    for n in 1..=3 {
        assert_eq!(frame(&mut *source).kind, Kind::Sensor(format!("v\n{n}\n")));
    }
}

#[test]
fn a_watched_directory_gives_each_file_once_it_has_stopped_growing_and_again_when_it_is_written_anew() {
    let script = Script::new("").file("old.jpg", "was there before");
    let mut source = open(Medium::Image, &format!("watch:{}", script.directory.path().display())).unwrap();
    fs::write(script.path(".hidden.jpg"), "h").unwrap();
    let growing = script.path("new.jpg");
    let mut whole = vec![];
    for n in 0..20 {
        whole.push(n);
        fs::write(&growing, &whole).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    let first = frame(&mut *source);
    assert_eq!((encoded(&first), first.origin.as_deref()), (&whole[..], Some(&*growing)));
    fs::write(&growing, "another").unwrap();
    assert_eq!(encoded(&frame(&mut *source)), b"another");
    assert_eq!(source.next(Duration::from_millis(600)), Ok(Poll::Nothing));
}

#[test]
fn what_is_not_there_is_an_error_at_once_of_the_class_device() {
    for (medium, spec) in [
        (Medium::Image, "exec:no-such-camera-program -o -"),
        (Medium::Image, "file:no/such/file.jpg"),
        (Medium::Image, "watch:no/such/directory"),
        (Medium::Sensor, "pipe:/dev/no-such-device"),
        (Medium::Sensor, "pipe:/"),
    ] {
        let Err(error) = open(medium, spec) else { panic!("{spec} was opened") };
        assert_eq!(error.class(), Class::Device, "{error}");
    }
}

#[test]
fn a_command_or_a_format_that_makes_no_sense_is_usage() {
    for (medium, spec, part) in [
        (Medium::Image, "exec:cam 'unclosed", "quote"),
        (Medium::Image, "format=h264,exec:cam", "`format=h264` is none of mjpeg"),
        (Medium::Image, "format=raw:rgb:100000x100000,exec:cam", "max_bytes"),
        (Medium::Audio, "format=raw:s16be:16000:1,exec:arecord", "s16le"),
        (Medium::Audio, "cut=word,on=3,off=9,exec:arecord", "`off` is above `on`"),
        (Medium::Audio, "length=61,exec:arecord", "60 s"),
        (Medium::Sensor, "length=1.5,exec:imu", "no number of lines"),
    ] {
        let Err(error) = open(medium, spec) else { panic!("{spec} was opened") };
        assert_eq!(error.class(), Class::Usage, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}

/// On a machine without GPIO (most that build this) the way out is in the message; with it, the missing line is.
#[cfg(all(feature = "gpio", target_os = "linux"))]
#[test]
fn gpio_that_is_not_there_is_a_device_error_that_says_what_to_do() {
    let Err(error) = open(Medium::Trigger, "gpio:no-such-chip/no-such-line") else { panic!("opened") };
    assert_eq!(error.class(), Class::Device, "{error}");
    let text = error.to_string();
    match error {
        CaptureError::Gpio(GpioError::NoGpio { .. }) => {
            assert!(text.contains("group `gpio`") && text.contains("/dev/gpiochip"), "{text}")
        }
        CaptureError::Gpio(GpioError::NoLine { .. }) => assert!(text.contains("chips here"), "{text}"),
        other => panic!("{other}"),
    }
}
