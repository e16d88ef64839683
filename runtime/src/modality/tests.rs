//! Parity with Pillow, transformers, librosa, soundfile and tokenizers (`testdata/record.py`), and what is refused.
use super::*;
use crate::bundle::npz::read_npz;
use crate::bundle::{BundleWriter, GraphEntry, Manifest};
use crate::{Class, Classified};

fn testdata(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/src/modality/testdata/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn arrays(name: &str) -> Vec<(String, Tensor)> {
    read_npz(&testdata(name)).unwrap()
}

fn array(all: &[(String, Tensor)], name: &str) -> Tensor {
    all.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no array {name}")).1.clone()
}

fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    match tensor.data() {
        crate::Data::U8(v) => v.clone(),
        other => panic!("{} instead of u8", other.dtype()),
    }
}

fn greatest_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.shape(), b.shape());
    a.as_f32().unwrap().iter().zip(b.as_f32().unwrap()).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

fn codes(notes: &[Note]) -> Vec<&str> {
    notes.iter().map(|n| n.code.as_str()).collect()
}

/// The member `name` of a recorded JSON object of configurations.
fn config(file: &str, name: &str) -> String {
    let value: serde_json::Value = serde_json::from_slice(&testdata(file)).unwrap();
    value[name].to_string()
}

#[cfg(feature = "image")]
mod images {
    use super::image::{ImageProcessor, decode};
    use super::*;

    #[test]
    fn every_kind_of_picture_decodes_to_the_bytes_pillow_gives_and_jpeg_within_two_levels() {
        let expected = arrays("decoded.npz");
        assert_eq!(expected.iter().filter(|(n, _)| !n.contains(':')).count(), 10);
        for (name, tensor) in &expected {
            let (file, color) = name.split_once(':').map_or((name.as_str(), false), |(f, _)| (f, true));
            let (pixels, _) = decode(&testdata(file)).unwrap();
            let pixels = if color { pixels.to_rgb() } else { pixels.to_gray() };
            assert_eq!([pixels.height(), pixels.width()], tensor.shape()[..2]);
            let limit = if file.ends_with("jpg") { 2 } else { 0 };
            let worst = pixels.data().iter().zip(bytes_of(tensor)).map(|(a, b)| a.abs_diff(b)).max().unwrap();
            assert!(worst <= limit, "{name}: {worst} levels");
        }
    }

    #[test]
    fn what_decoding_loses_is_noted() {
        for (file, notes) in [
            ("rgb.png", &[][..]),
            ("rgb.jpg", &[]),
            ("rgba.png", &["alpha-dropped"]),
            ("gray_alpha.png", &["alpha-dropped"]),
            ("rgb16.png", &["depth-reduced"]),
            ("gray16.png", &["depth-reduced"]),
        ] {
            assert_eq!(codes(&decode(&testdata(file)).unwrap().1), notes, "{file}");
        }
    }

    #[test]
    fn every_filter_resizes_to_the_very_bytes_pillow_gives() {
        let (gray, rgb) = (decode(&testdata("gray.png")).unwrap().0, decode(&testdata("rgb.png")).unwrap().0);
        let expected = arrays("resized.npz");
        assert_eq!(expected.len(), 6 * 7);
        for (name, tensor) in &expected {
            let parts: Vec<&str> = name.split('_').collect();
            let (width, height) = parts[2].split_once('x').unwrap();
            let picture = if parts[0] == "gray" { &gray } else { &rgb };
            let filter = Resample::from_code(parts[1].parse().unwrap()).unwrap();
            let found = resize(picture, width.parse().unwrap(), height.parse().unwrap(), filter).unwrap();
            let worst = found.data().iter().zip(bytes_of(tensor)).map(|(a, b)| a.abs_diff(b)).max().unwrap();
            assert_eq!(worst, 0, "{name} differs by {worst}");
        }
    }

    #[test]
    fn whole_processors_give_what_transformers_gives_with_its_own_json() {
        let (rgb, _) = decode(&testdata("rgb.png")).unwrap();
        for (name, expected) in arrays("pixels.npz") {
            let processor = ImageProcessor::from_json(&config("processors.json", &name)).unwrap();
            let (found, notes) = processor.encode(&rgb).unwrap();
            let worst = greatest_difference(&found, &expected);
            assert!(worst <= 1e-5, "{name}: {worst}");
            assert!(codes(&notes).contains(&"resized"));
        }
    }

    #[test]
    fn gray_and_colour_are_converted_and_noted() {
        let processor = ImageProcessor::from_json(r#"{"do_grayscale":true,"do_rescale":false}"#).unwrap();
        let (rgb, _) = decode(&testdata("rgb.png")).unwrap();
        let (tensor, notes) = processor.encode(&rgb).unwrap();
        assert_eq!(tensor.shape(), [1, 1, 47, 61]);
        assert_eq!(tensor.as_f32().unwrap()[17], f32::from(rgb.to_gray().data()[17]));
        assert_eq!(codes(&notes), ["rgb-to-gray"]);
        let processor = ImageProcessor::from_json(r#"{"image_mean":[0.5,0.4,0.3],"image_std":0.5}"#).unwrap();
        let (tensor, notes) = processor.encode(&rgb.to_gray()).unwrap();
        assert_eq!(tensor.shape(), [1, 3, 47, 61]);
        assert_eq!(codes(&notes), ["gray-to-rgb"]);
    }

    #[test]
    fn keys_that_would_change_the_result_are_refused_by_name_and_harmless_ones_are_not() {
        ImageProcessor::from_json(
            r#"{"image_processor_type":"ViTImageProcessor","do_pad":false,"do_reduce_labels":null,"_hint":1,"size":224}"#,
        )
        .unwrap();
        for (text, key) in [
            (r#"{"do_pad":true}"#, "do_pad"),
            (r#"{"offset":1}"#, "offset"),
            (r#"{"size":{"longest_edge":3}}"#, "size"),
            (r#"{"size":{"height":0,"width":3}}"#, "size"),
            (r#"{"size":99999999}"#, "size"),
            (r#"{"size":8,"resample":6}"#, "resample"),
            (r#"{"size":8,"resample":1.5}"#, "resample"),
            (r#"{"do_resize":true}"#, "size"),
            (r#"{"do_center_crop":true}"#, "crop_size"),
            (r#"{"do_normalize":true}"#, "image_mean"),
            (r#"{"image_mean":[0.5,0.5]}"#, "image_mean"),
            (r#"{"image_mean":0.5,"image_std":0}"#, "image_std"),
            (r#"{"do_grayscale":true,"do_convert_rgb":true}"#, "do_grayscale"),
            (r#"{"do_rescale":"yes"}"#, "do_rescale"),
            ("[]", "(top)"),
            ("{", "(top)"),
        ] {
            match ImageProcessor::from_json(text) {
                Err(ModalityError::Config { key: k, .. }) => assert_eq!(k, key, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_png_header_of_forty_thousand_pixels_a_side_is_refused_by_the_header() {
        let mut bomb = testdata("gray.png");
        bomb[16..20].copy_from_slice(&40_000u32.to_be_bytes());
        bomb[20..24].copy_from_slice(&40_000u32.to_be_bytes());
        let crc = crc32(&bomb[12..29]);
        bomb[29..33].copy_from_slice(&crc.to_be_bytes());
        match decode(&bomb).unwrap_err() {
            ModalityError::ImageTooLarge { width: 40_000, height: 40_000, .. } => {}
            other => panic!("{other}"),
        }
    }

    #[test]
    fn cut_and_flipped_pictures_are_errors_or_pictures_and_never_a_panic() {
        for file in ["gray.png", "gray.jpg", "palette.png", "rgb16.png"] {
            let bytes = testdata(file);
            // A JPEG decoder may fill in what is missing at the end; a PNG is whole or it is not.
            for length in 0..bytes.len() {
                let cut = decode(&bytes[..length]);
                assert!(!file.ends_with("png") || length + 12 > bytes.len() || cut.is_err(), "{file} cut at {length}");
            }
            for at in 0..bytes.len() {
                let mut bad = bytes.clone();
                bad[at] ^= 0x55;
                let _ = decode(&bad);
            }
        }
        for bad in [&b""[..], b"GIF89a\x01\x00\x01\x00", b"not a picture at all"] {
            assert!(matches!(decode(bad), Err(ModalityError::Image { .. })));
        }
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for &b in bytes {
            crc ^= u32::from(b);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
            }
        }
        !crc
    }
}

#[cfg(feature = "audio")]
mod sounds {
    use super::audio::mel::Pad;
    use super::audio::{AudioProcessor, Clip, clip, decode, resample};
    use super::*;

    #[test]
    fn every_rate_and_depth_decodes_to_the_samples_soundfile_gives() {
        let expected = arrays("samples.npz");
        assert_eq!(expected.len(), 6);
        for (file, samples) in &expected {
            let (found, notes) = decode(&testdata(file)).unwrap();
            assert_eq!(codes(&notes), if file.starts_with("stereo") { &["downmixed"][..] } else { &[] });
            let rate =
                [("8k", 8_000), ("16k", 16_000), ("22k", 22_050), ("32k", 32_000), ("44k", 44_100), ("48k", 48_000)];
            assert_eq!(found.rate_hz, rate.iter().find(|(k, _)| file.contains(&format!("-{k}"))).unwrap().1);
            let samples = samples.as_f32().unwrap();
            assert_eq!(found.samples.len(), samples.len(), "{file}");
            // MP3 decoders may differ in the last bits; the other formats are exact but for the average's rounding.
            let limit = if file.ends_with("mp3") { 1e-4 } else { 1e-7 };
            let worst = found.samples.iter().zip(samples).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= limit, "{file}: {worst}");
        }
    }

    #[test]
    fn resampling_agrees_with_soxr_to_sixty_decibels_and_is_noted() {
        let all = arrays("resampled.npz");
        for rate in [8_000, 22_050, 44_100] {
            let from = clip(rate, array(&all, &format!("from_{rate}")).as_f32().unwrap().to_vec()).unwrap();
            let expected = array(&all, &format!("to_16000_from_{rate}"));
            let expected = expected.as_f32().unwrap();
            let (found, note) = resample(from, 16_000).unwrap();
            assert_eq!(note, Some(Note::new("resampled", format!("{rate} Hz"), "16000 Hz")));
            assert!(found.samples.len().abs_diff(expected.len()) <= 1, "{}", found.samples.len());
            // The ends, where each resampler assumes something else before and after the clip, are left out.
            let inner = 200..expected.len() - 200;
            let power: f32 = expected[inner.clone()].iter().map(|v| v * v).sum();
            let error: f32 = inner.map(|i| (found.samples[i] - expected[i]).powi(2)).sum();
            let decibels = 10.0 * (power / error).log10();
            eprintln!("{rate} Hz: {decibels:.1} dB");
            assert!(decibels >= 60.0, "{rate}: {decibels} dB");
        }
    }

    #[test]
    fn whisper_features_are_those_of_transformers() {
        let all = arrays("mel.npz");
        let mut compared = 0;
        for (name, expected) in &all {
            let Some((kind, clip_name)) = name.split_once('_').filter(|(k, _)| k.starts_with("whisper")) else {
                continue;
            };
            let processor = AudioProcessor::from_json(&config("extractors.json", kind)).unwrap();
            let samples = array(&all, &format!("clip_{clip_name}")).as_f32().unwrap().to_vec();
            let (found, notes) = processor.encode(clip(16_000, samples).unwrap()).unwrap();
            let worst = greatest_difference(&found, expected);
            assert!(worst <= 1e-4, "{name}: {worst}");
            assert_eq!(codes(&notes), [if clip_name == "long" { "truncated" } else { "padded" }]);
            compared += 1;
        }
        assert_eq!(compared, 4);
    }

    #[test]
    fn mel_spectrograms_are_those_of_librosa() {
        let all = arrays("mel.npz");
        let samples = array(&all, "clip_short").as_f32().unwrap().to_vec();
        for (name, text) in [
            (
                "librosa_db",
                r#"{"feature_extractor_type":"LogMelSpectrogram","sampling_rate":16000,"n_fft":512,"hop_length":200,
                "win_length":400,"n_mels":32,"fmin":50,"fmax":7000,"htk":true,"log":"db","top_db":80}"#,
            ),
            (
                "librosa_ln",
                r#"{"feature_extractor_type":"LogMelSpectrogram","sampling_rate":16000,"n_fft":400,"hop_length":160,
                "n_mels":24,"norm":"slaney","power":1,"center":false,"log":"ln","floor":1e-5}"#,
            ),
        ] {
            let processor = AudioProcessor::from_json(text).unwrap();
            let (found, _) = processor.encode(clip(16_000, samples.clone()).unwrap()).unwrap();
            let worst = greatest_difference(&found, &array(&all, name));
            // Decibels of values near the floor carry librosa's single precision, some 1e-3 dB.
            assert!(worst <= if name == "librosa_db" { 1e-3 } else { 1e-4 }, "{name}: {worst}");
        }
    }

    #[test]
    fn extractors_that_cannot_be_followed_are_refused_by_key() {
        for (text, key) in [
            (r#"{"dither":0.1}"#, "dither"),
            (r#"{"n_samples":1}"#, "n_samples"),
            (r#"{"nb_max_frames":1}"#, "nb_max_frames"),
            (r#"{"chunk_length":0}"#, "chunk_length"),
            (r#"{"chunk_length":1e300}"#, "chunk_length"),
            (r#"{"n_fft":1e9}"#, "n_fft"),
            (r#"{"hop_length":0}"#, "hop_length"),
            (r#"{"do_normalize":true}"#, "do_normalize"),
            (r#"{"padding_side":"left"}"#, "padding_side"),
            (r#"{"feature_extractor_type":"Wav2Vec2FeatureExtractor"}"#, "feature_extractor_type"),
            (r#"{"feature_extractor_type":"LogMelSpectrogram"}"#, "sampling_rate"),
        ] {
            match AudioProcessor::from_json(text) {
                Err(ModalityError::Config { key: k, .. }) => assert_eq!(k, key, "{text}"),
                Err(other) => panic!("{text}: {other}"),
                Ok(_) => panic!("{text} passed"),
            }
        }
        let mel = r#"{"feature_extractor_type":"LogMelSpectrogram","sampling_rate":16000,"n_fft":400,"hop_length":160,"n_mels":8"#;
        for (rest, key) in [
            (r#","fmin":9000"#, "fmax"),
            (r#","win_length":401"#, "win_length"),
            (r#","power":3"#, "power"),
            (r#","log":"log2""#, "log"),
            (r#","norm":"l2""#, "norm"),
            (r#","pad_mode":"wrap""#, "pad_mode"),
            (r#","top_db":80"#, "top_db"),
            (r#","log":"ln","floor":0"#, "floor"),
        ] {
            match AudioProcessor::from_json(&format!("{mel}{rest}}}")) {
                Err(ModalityError::Config { key: k, .. }) => assert_eq!(k, key, "{rest}"),
                _ => panic!("{rest}"),
            }
        }
    }

    #[test]
    fn a_clip_shorter_than_the_mirror_and_one_without_a_frame_are_both_handled() {
        let mut config = mel_config();
        let short = [0.5f32; 3];
        config.pad = Pad::Reflect;
        // A constant mirrored any number of times is the same constant.
        let mirrored = audio::mel::LogMel::new(config).unwrap().features(&short).unwrap();
        let constant = audio::mel::LogMel::new(config).unwrap().features(&[0.5; 400]).unwrap();
        assert!((mirrored.as_f32().unwrap()[0] - constant.as_f32().unwrap()[0]).abs() < 1e-6);
        config.pad = Pad::None;
        assert!(audio::mel::LogMel::new(config).unwrap().features(&short).is_err());
        assert!(audio::mel::LogMel::new(config).unwrap().features(&[]).is_err());
    }

    fn mel_config() -> audio::mel::MelConfig {
        audio::mel::MelConfig {
            rate_hz: 16_000,
            n_fft: 400,
            win_length: 400,
            hop_length: 160,
            n_mels: 8,
            fmin: 0.0,
            fmax: 8000.0,
            scale: audio::mel::Scale::Slaney,
            area_normalised: true,
            power: 2.0,
            pad: Pad::Zeros,
            log: audio::mel::Log::None,
            drop_last_frame: false,
        }
    }

    #[test]
    fn empty_and_cut_sounds_are_errors_and_flipped_ones_never_a_panic() {
        assert!(matches!(decode(b""), Err(ModalityError::Audio { .. })));
        assert!(decode(b"RIFF, but not really").is_err());
        for file in ["mono-16k-s16.wav", "mono-8k-u8.wav", "stereo-44k1-s24.flac", "mono-22k05-f32.wav"] {
            let bytes = testdata(file);
            for k in 0..200 {
                let length = bytes.len() * k / 200;
                assert!(decode(&bytes[..length]).is_err(), "{file} cut to {length} of {}", bytes.len());
            }
        }
        for file in ["mono-8k-u8.wav", "stereo-44k1-s24.flac", "mono-32k.mp3"] {
            let bytes = testdata(file);
            for k in 0..400 {
                let mut bad = bytes.clone();
                let at = if k < 100 { k } else { bytes.len() * (k - 100) / 300 };
                bad[at] ^= 0xff;
                let _ = decode(&bad);
            }
        }
        assert!(clip(16_000, vec![0.0, f32::NAN]).is_err());
        assert!(clip(0, vec![0.0]).is_err());
        assert!(clip(16_000, vec![]).is_err());
        assert!(resample(Clip { rate_hz: 16_000, samples: vec![0.0] }, 1).is_err());
    }
}

#[cfg(feature = "text")]
mod texts {
    use super::text::TextProcessor;
    use super::*;

    fn recorded_texts() -> Vec<String> {
        serde_json::from_slice(&testdata("texts.json")).unwrap()
    }

    #[test]
    fn every_token_id_is_that_of_the_python_library() {
        let ids = arrays("ids.npz");
        let mut compared = 0;
        for name in ["byte_bpe", "wordpiece", "unigram"] {
            let processor = TextProcessor::from_json(&testdata(&format!("{name}.json"))).unwrap();
            for (i, text) in recorded_texts().iter().enumerate() {
                let expected = array(&ids, &format!("{name}_{i}"));
                match processor.encode(text) {
                    Ok((found, _)) => {
                        assert_eq!(found.as_i64().unwrap(), expected.as_i64().unwrap(), "{name}: {text:?}")
                    }
                    Err(e) => assert!(expected.is_empty(), "{name}: {text:?}: {e}"),
                }
                compared += 1;
            }
        }
        assert_eq!(compared, 48);
    }

    #[test]
    fn truncation_and_unknown_tokens_are_noted_with_figures() {
        let processor = TextProcessor::from_json(&testdata("wordpiece.json")).unwrap();
        let long = "the quick brown fox jumps over the lazy dog and then some more";
        let (tensor, notes) = processor.encode(long).unwrap();
        assert_eq!(tensor.shape(), [1, 12]);
        let note = notes.iter().find(|n| n.code == "truncated").unwrap();
        assert_eq!(note.from, format!("{} bytes", long.len()));
        assert!(note.to.ends_with(" bytes") && note.to != note.from, "{note}");
        let (_, notes) = processor.encode("turn 李 on").unwrap();
        assert_eq!(codes(&notes), ["unknown-token"]);
        assert_eq!(notes[0].to, "[UNK]");
        assert!(notes[0].from.starts_with("1 of "), "{}", notes[0].from);
        let (tensors, notes) = processor.encode_all("turn on").unwrap();
        assert!(notes.is_empty());
        let mask = tensors.attention_mask.as_i64().unwrap();
        let ids = tensors.ids.as_i64().unwrap();
        assert!(mask.iter().zip(ids).all(|(m, id)| (*m == 0) == (*id == 0)));
        let (_, notes) = TextProcessor::from_json(&testdata("unigram.json")).unwrap().encode("李").unwrap();
        assert_eq!(codes(&notes), ["unknown-token"]);
    }

    #[test]
    fn broken_tokenizers_and_endless_texts_are_errors() {
        let good = String::from_utf8(testdata("wordpiece.json")).unwrap();
        for bad in [
            "".to_string(),
            "{}".to_string(),
            good.replace("\"max_length\":12", "\"max_length\":0"),
            good.replace("\"max_length\":12", "\"max_length\":2"),
            good.replace("WordPiece", "WordPeace"),
            good[..good.len() / 2].to_string(),
        ] {
            assert_ne!(bad, good);
            assert!(matches!(TextProcessor::from_json(bad.as_bytes()), Err(ModalityError::Config { .. })));
        }
        let processor = TextProcessor::from_json(good.as_bytes()).unwrap();
        assert!(matches!(processor.encode(&"a".repeat(2 << 20)), Err(ModalityError::Text { .. })));
    }
}

#[cfg(all(feature = "image", feature = "audio", feature = "text"))]
mod preprocessor {
    use super::*;

    const SENSORS: &str = r#"{"schema":"hone.sensors/1","rate_hz":10,"window":2,"channels":[{"name":"x","unit":"g","mean":0,"scale":1}]}"#;

    fn port(name: &str, modality: &str, dtype: DType, shape: &[u32]) -> Port {
        let dims = shape.iter().map(|&d| if d == 0 { Dim::Symbol("N".into()) } else { Dim::Fixed(d) }).collect();
        Port { name: name.into(), dtype, shape: dims, modality: Some(modality.into()), of: None }
    }

    fn all_ports() -> Vec<Port> {
        vec![
            port("pixel_values", "image", DType::F32, &[0, 1, 8, 9]),
            port("input_features", "audio", DType::F32, &[0, 40, 100]),
            port("input_ids", "text", DType::I64, &[0, 12]),
            port("readings", "sensor", DType::F32, &[0, 1, 2]),
            port("present", "present", DType::F32, &[0, 4]),
        ]
    }

    fn bundle(ports: Vec<Port>, preprocessor: String) -> Bundle {
        let mut manifest = Manifest::new("all", "1.0.0", "2026-11-23T18:00:00Z");
        manifest.inputs = ports;
        let path = "onnx/model.onnx".to_string();
        manifest.graphs.push(GraphEntry { name: "main".into(), path, role: "main".into(), state: vec![] });
        let mut writer = BundleWriter::new(manifest);
        writer.add("onnx/model.onnx", "graph", b"not read here".to_vec()).unwrap();
        writer.add("preprocessor_config.json", "config", preprocessor.into_bytes()).unwrap();
        writer.add("tokenizer.json", "config", testdata("wordpiece.json")).unwrap();
        writer.add("sensors.json", "config", SENSORS.as_bytes()).unwrap();
        writer.finish().unwrap()
    }

    fn nested() -> String {
        let image = r#"{"do_grayscale":true,"size":{"height":8,"width":9}}"#;
        format!(r#"{{"image_processor":{image},"feature_extractor":{}}}"#, config("extractors.json", "whisper40"))
    }

    fn named<'a>(tensors: &'a [(String, Tensor)], name: &str) -> &'a Tensor {
        &tensors.iter().find(|(n, _)| n == name).unwrap().1
    }

    #[test]
    fn what_is_given_is_prepared_and_what_is_missing_is_zeros_and_a_zero_in_present() {
        let preprocessor = Preprocessor::from_bundle(&bundle(all_ports(), nested())).unwrap();
        assert_eq!(preprocessor.modalities(), ["image", "audio", "text", "sensor"]);
        let (png, wav) = (testdata("rgb.png"), testdata("mono-8k-u8.wav"));
        let full = Sample {
            image: Some(Image::File(&png)),
            audio: Some(Audio::File(&wav)),
            text: Some("turn on"),
            sensor: Some("x\n1\n2\n"),
        };
        let (tensors, notes) = preprocessor.prepare(&full).unwrap();
        let names: Vec<&str> = tensors.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, ["pixel_values", "input_features", "input_ids", "readings", "present"]);
        assert_eq!(named(&tensors, "present").as_f32().unwrap(), [1.0; 4]);
        assert_eq!(codes(&notes), ["rgb-to-gray", "resized", "resampled", "padded"]);

        let samples = vec![0.25; 16_000];
        let some = Sample { audio: Some(Audio::Pcm { rate_hz: 16_000, samples: &samples }), ..Sample::default() };
        let (tensors, notes) = preprocessor.prepare(&some).unwrap();
        assert_eq!(named(&tensors, "present").as_f32().unwrap(), [0.0, 1.0, 0.0, 0.0]);
        assert_eq!(named(&tensors, "pixel_values"), &Tensor::zeros(DType::F32, &[1, 1, 8, 9]).unwrap());
        assert_eq!(named(&tensors, "input_ids"), &Tensor::zeros(DType::I64, &[1, 12]).unwrap());
        assert!(named(&tensors, "input_features").as_f32().unwrap().iter().any(|v| *v != 0.0));
        assert!(notes.is_empty());

        let e = preprocessor.prepare(&Sample::default()).unwrap_err();
        assert_eq!(e.to_string(), "nothing was given; the model takes image, audio, text, sensor");
        assert_eq!(e.class(), Class::Usage);
    }

    #[test]
    fn the_columns_of_present_follow_its_list() {
        let mut ports = all_ports();
        ports[4].of = Some(vec!["input_ids".into(), "pixel_values".into()]);
        ports[4].shape[1] = Dim::Fixed(2);
        let preprocessor = Preprocessor::from_bundle(&bundle(ports.clone(), nested())).unwrap();
        let sample = Sample { text: Some("turn"), ..Sample::default() };
        let (tensors, _) = preprocessor.prepare(&sample).unwrap();
        assert_eq!(named(&tensors, "present").as_f32().unwrap(), [1.0, 0.0]);
        ports[4].shape[1] = Dim::Fixed(3);
        assert!(matches!(Preprocessor::from_bundle(&bundle(ports, nested())), Err(ModalityError::Input { .. })));
    }

    #[test]
    fn a_model_without_present_says_in_a_note_what_was_missing_and_refuses_what_it_lacks() {
        let ports = vec![all_ports()[0].clone(), all_ports()[2].clone()];
        let preprocessor = Preprocessor::from_bundle(&bundle(ports, nested())).unwrap();
        let (_, notes) = preprocessor.prepare(&Sample { text: Some("turn"), ..Sample::default() }).unwrap();
        assert_eq!(notes, [Note::new("missing", "image", "zeros")]);
        let e = preprocessor.prepare(&Sample { sensor: Some("x\n1"), ..Sample::default() }).unwrap_err();
        assert_eq!(e.to_string(), "the model takes no sensor; it takes image, text");
    }

    #[test]
    fn several_text_inputs_are_told_apart_by_name() {
        let ports = vec![
            port("input_ids", "text", DType::I64, &[1, 0]),
            port("attention_mask", "text", DType::I64, &[1, 0]),
            port("token_type_ids", "text", DType::I64, &[1, 0]),
        ];
        let preprocessor = Preprocessor::from_bundle(&bundle(ports, "{}".into())).unwrap();
        let (tensors, _) = preprocessor.prepare(&Sample { text: Some("turn on"), ..Sample::default() }).unwrap();
        assert_eq!(named(&tensors, "attention_mask").as_i64().unwrap()[..5], [1, 1, 1, 1, 0]);
        assert_eq!(named(&tensors, "token_type_ids").as_i64().unwrap(), [0; 12]);
        assert_eq!(named(&tensors, "input_ids").as_i64().unwrap()[0], 2);
    }

    #[test]
    fn manifests_and_descriptions_that_do_not_fit_are_refused_by_name() {
        let with = |port: Port| Preprocessor::from_bundle(&bundle(vec![port], nested()));
        for bad in [
            port("a", "smell", DType::F32, &[1]),
            port("a", "image", DType::U8, &[1]),
            port("a", "text", DType::F32, &[1]),
            Port { modality: None, ..port("a", "image", DType::F32, &[1]) },
        ] {
            assert!(matches!(with(bad), Err(ModalityError::Input { .. })));
        }
        let twice = vec![port("a", "image", DType::F32, &[1]), port("b", "image", DType::F32, &[1])];
        assert!(matches!(Preprocessor::from_bundle(&bundle(twice, nested())), Err(ModalityError::Input { .. })));

        let preprocessor = with(port("a", "image", DType::F32, &[0, 3, 8, 9])).unwrap();
        let png = testdata("gray.png");
        let e = preprocessor.prepare(&Sample { image: Some(Image::File(&png)), ..Sample::default() }).unwrap_err();
        assert_eq!(e.to_string(), "input 'a': preparing gives [1, 1, 8, 9], the model takes [N, 3, 8, 9]");

        // A flat file serves the one modality that needs it, and no two.
        let flat = r#"{"do_grayscale":true,"size":{"height":8,"width":9}}"#.to_string();
        Preprocessor::from_bundle(&bundle(vec![all_ports()[0].clone()], flat.clone())).unwrap();
        let both = all_ports()[..2].to_vec();
        assert!(matches!(Preprocessor::from_bundle(&bundle(both, flat)), Err(ModalityError::Config { .. })));
    }
}

/// The front ends of the shipped model against the libraries its exporter used; see `models/which-digit/golden.py`.
#[cfg(all(feature = "image", feature = "audio", feature = "text"))]
mod which_digit {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        kind: String,
        #[serde(default)]
        file: String,
        #[serde(default)]
        text: String,
        expected: String,
        #[serde(default)]
        row: usize,
        tolerance: f32,
        #[serde(default)]
        tolerance_mean: Option<f32>,
    }

    #[test]
    fn every_golden_file_of_the_model_gives_its_recorded_tensor() {
        let model = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/which-digit");
        if !model.join("golden/index.json").exists() {
            eprintln!("not compared: models/which-digit/golden is not in this checkout");
            return;
        }
        let golden = |name: &str| std::fs::read(model.join("golden").join(name)).unwrap();
        let config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(model.join("src/config/preprocessor_config.json")).unwrap()).unwrap();
        let image = super::super::image::ImageProcessor::from_json(&config["image_processor"].to_string()).unwrap();
        let audio = super::super::audio::AudioProcessor::from_json(&config["feature_extractor"].to_string()).unwrap();
        let tokenizer = std::fs::read(model.join("src/config/tokenizer.json")).unwrap();
        let text = super::super::text::TextProcessor::from_json(&tokenizer).unwrap();

        let cases: Vec<Case> = serde_json::from_slice(&golden("index.json")).unwrap();
        let mut failures = vec![];
        let mut count = [0; 3];
        for case in &cases {
            let expected = array(&read_npz(&golden(&case.expected)).unwrap(), "expected");
            let found = match case.kind.as_str() {
                "image" => {
                    count[0] += 1;
                    let (pixels, _) = super::super::image::decode(&golden(&case.file)).unwrap();
                    image.encode(&pixels).unwrap().0
                }
                "audio" => {
                    count[1] += 1;
                    let (clip, _) = super::super::audio::decode(&golden(&case.file)).unwrap();
                    audio.encode(clip).unwrap().0
                }
                "text" => {
                    count[2] += 1;
                    let ids = text.encode(&case.text).unwrap().0;
                    let length = ids.len();
                    let row = &expected.as_i64().unwrap()[case.row * length..(case.row + 1) * length];
                    if ids.as_i64().unwrap() != row {
                        failures.push(format!("{:?}: {:?} instead of {row:?}", case.text, ids.as_i64().unwrap()));
                    }
                    continue;
                }
                other => panic!("a case of kind {other}"),
            };
            let (a, b) = (found.as_f32().unwrap(), expected.as_f32().unwrap());
            assert_eq!(a.len(), b.len(), "{}", case.file);
            let differences: Vec<f32> = a.iter().zip(b).map(|(x, y)| (x - y).abs()).collect();
            let worst = differences.iter().copied().fold(0.0, f32::max);
            let mean = differences.iter().sum::<f32>() / differences.len() as f32;
            if worst > case.tolerance || case.tolerance_mean.is_some_and(|t| mean > t) {
                failures.push(format!(
                    "{}: worst {worst}, mean {mean}, allowed {} {:?}",
                    case.file, case.tolerance, case.tolerance_mean
                ));
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
        assert!(count.iter().all(|&n| n > 0), "cases of each kind: {count:?}");
    }
}
