//! Against files made by another implementation (`testdata/record.py`).
use super::*;

const ELF: &[u8] = include_bytes!("testdata/toy.elf");
const UF2: &[u8] = include_bytes!("testdata/toy.uf2");
const RP2040: u32 = 0xe48b_ff56;

#[test]
fn an_elf_file_becomes_the_uf2_file_that_another_writer_makes_of_it() {
    let image = Image::parse(ELF).unwrap();
    assert_eq!(uf2::write(&image, RP2040), UF2);
    assert_eq!(image.range(), (0x1000_0100, 0x1000_031c));
}

#[test]
fn a_plate_is_found_in_either_file_and_its_digest_is_the_images() {
    for file in [ELF, UF2] {
        let plate = Image::parse(file).unwrap().plate().unwrap();
        assert_eq!((plate.board.as_str(), plate.version), ("pico", [1, 2, 3]));
    }
    let plates = [ELF, UF2].map(|file| Image::parse(file).unwrap().plate().unwrap());
    assert_eq!(plates[0], plates[1]);
}

#[test]
fn what_lies_in_another_memory_follows_in_the_digest_without_a_gap() {
    let mut code = b"HONEPAD\0esp32c3\0\0\0\0\0\x01\x02\x03\x01\0\0\0\0\0\0\0\0".to_vec();
    let data = [9u8; 12];
    let digest = hone_wire::auth::tag(b"hone firmware id", &[&code[..], &data].concat());
    code[24..].copy_from_slice(&digest);
    let mut elf = vec![0; 52];
    elf[..6].copy_from_slice(b"\x7fELF\x01\x01");
    elf[28..32].copy_from_slice(&52u32.to_le_bytes());
    elf[42..44].copy_from_slice(&32u16.to_le_bytes());
    elf[44..46].copy_from_slice(&2u16.to_le_bytes());
    let body = 52 + 64;
    for (at, address, len) in [(body, 0x3c00_0020u32, code.len() as u32), (body + code.len() as u32, 0x4200_0020, 12)] {
        let header = [1, at, address, address, len, len, 5, 4];
        elf.extend(header.iter().flat_map(|word| word.to_le_bytes()));
    }
    elf.extend(code.iter().chain(&data));
    let plate = Image::parse(&elf).unwrap().plate().unwrap();
    assert_eq!((plate.board.as_str(), plate.digest), ("esp32c3", digest));
    *elf.last_mut().unwrap() ^= 1;
    assert!(Image::parse(&elf).unwrap().plate().is_err());
}

#[test]
fn a_damaged_file_is_refused_wherever_the_damage_is() {
    for at in (0..UF2.len()).step_by(7) {
        let mut file = UF2.to_vec();
        file[at] ^= 0x10;
        // The padding of a block is nobody's.
        if (288..508).contains(&(at % 512)) {
            continue;
        }
        let judged = Image::parse(&file).and_then(|image| Board::named("pico").unwrap().accepts(&image));
        assert!(judged.is_err(), "byte {at}");
    }
    for len in 0..ELF.len() {
        assert!(Image::parse(&ELF[..len]).is_err(), "{len}");
    }
    assert!(Image::parse(&UF2[..700]).is_err() && Image::parse(&UF2[512..]).is_err() && Image::parse(b"").is_err());
}

#[test]
fn firmware_of_another_board_or_family_is_refused_by_name() {
    let image = Image::parse(UF2).unwrap();
    assert_eq!(Board::named("pico").unwrap().accepts(&image).unwrap().board, "pico");
    let error = Board::named("pico2").unwrap().accepts(&image).unwrap_err();
    assert!(matches!(error, FlashError::WrongBoard { .. }) && error.to_string().contains("0xe48bff56"), "{error}");
    let elf = Image::parse(ELF).unwrap();
    let error = Board::named("stm32f103").unwrap().accepts(&elf).unwrap_err();
    assert!(matches!(error, FlashError::WrongBoard { .. }), "{error}");
    assert!(Board::named("toaster").unwrap_err().to_string().contains("pico2"));
}

#[test]
fn a_drive_is_known_by_what_is_in_it_and_takes_the_file_whole() {
    let dir = tempfile::tempdir().unwrap();
    let board = Board::named("pico").unwrap();
    let drive = |name: &str, info: &str| {
        let path = dir.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join(INFO), info).unwrap();
        path
    };
    let pico = drive("A", "UF2 Bootloader v2.0\r\nModel: Raspberry Pi RP2\r\nBoard-ID: RPI-RP2\r\n");
    let other = drive("RPI-RP2", "UF2 Bootloader v1.0\nModel: Other\nBoard-ID: SAMD21\n");
    let empty = dir.path().join("stick");
    fs::create_dir(&empty).unwrap();
    let here = [&pico, &other, &empty].map(|path| Drive::at(path));
    assert_eq!(here[0].as_ref().map(|drive| drive.board_id.as_str()), Some("RPI-RP2"));
    assert_eq!(here[2], None);
    let mounted: Vec<Drive> = here.into_iter().flatten().collect();
    let found = find_drive(board, None, mounted.clone()).unwrap();
    assert_eq!(found.path, pico);
    found.write(UF2).unwrap();
    assert_eq!(fs::read(pico.join("hone.uf2")).unwrap(), UF2);

    let error = |named: Option<&Path>, mounted| find_drive(board, named, mounted).unwrap_err();
    assert!(matches!(error(None, vec![]), FlashError::NoDrive { .. }));
    assert!(matches!(error(Some(&empty), vec![]), FlashError::NoDrive { .. }));
    assert!(matches!(error(Some(&other), vec![]), FlashError::WrongBoard { .. }));
    let twice = [mounted[..1].to_vec(), mounted[..1].to_vec()].concat();
    assert!(matches!(error(None, twice), FlashError::ManyDrives { .. }));
}

#[test]
fn blanks_in_a_mount_point_are_read() {
    assert_eq!(unescape(r"/media/ada/RPI\040RP2\134x"), r"/media/ada/RPI RP2\x");
    assert_eq!(unescape(r"a\z"), r"a\z");
}
