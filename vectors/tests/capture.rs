//! The capture readers against files made by hand, files made by `pcap-file`, and garbage.

use std::io::Cursor;
use std::time::Duration;

use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::section_header::SectionHeaderBlock;
use pcap_file::pcapng::blocks::simple_packet::SimplePacketBlock;
use pcap_file::pcapng::{PcapNgBlock, PcapNgWriter};
use pcap_file::{DataLink, Endianness, TsResolution};
use proptest::prelude::*;
use vesper_verify::capture::{CaptureError, CaptureReader, CaptureWriter, LinkType};

/// Time, link type, length on the wire, bytes.
type Frame = (u64, LinkType, u32, Vec<u8>);

fn read(file: &[u8]) -> Result<Vec<Frame>, CaptureError> {
    let mut reader = CaptureReader::new(Cursor::new(file), "c.pcap".to_owned())?;
    let mut frames = Vec::new();
    while let Some(record) = reader.next_record()? {
        assert_eq!(record.number, frames.len() as u64 + 1);
        frames.push((
            record.timestamp,
            record.link,
            record.original_len,
            record.data.to_vec(),
        ));
    }
    assert_eq!(reader.position(), file.len() as u64);
    Ok(frames)
}

fn error(file: &[u8]) -> String {
    read(file).expect_err("a malformed file").to_string()
}

fn classic(endianness: Endianness, ts_resolution: TsResolution) -> Vec<u8> {
    let header = PcapHeader {
        endianness,
        ts_resolution,
        datalink: DataLink::RAW,
        ..PcapHeader::default()
    };
    let mut writer = PcapWriter::with_header(Vec::new(), header).unwrap();
    for (time, data) in [(1_700_000_000_123_456_000, &b"abc"[..]), (5_000, b"")] {
        let packet = PcapPacket::new(Duration::from_nanos(time), data.len() as u32, data);
        writer.write_packet(&packet).unwrap();
    }
    writer.into_writer()
}

#[test]
fn classic_files_of_another_writer() {
    for endianness in [Endianness::Little, Endianness::Big] {
        for resolution in [TsResolution::MicroSecond, TsResolution::NanoSecond] {
            assert_eq!(
                read(&classic(endianness, resolution)).unwrap(),
                [
                    (1_700_000_000_123_456_000, LinkType::Raw, 3, b"abc".to_vec()),
                    (5_000, LinkType::Raw, 0, vec![]),
                ]
            );
        }
    }
}

#[test]
fn our_files_are_read_by_another_reader() {
    let mut file = Vec::new();
    let mut writer = CaptureWriter::new(&mut file).unwrap();
    writer
        .packet(1_700_000_000_123_456_789, &[0x45; 1500])
        .unwrap();
    writer.packet(7, &[0x60; 65_575]).unwrap();
    assert!(writer.packet(7, &[0x60; 65_576]).is_err());
    writer.finish().unwrap();

    let mut reader = PcapReader::new(&file[..]).unwrap();
    assert_eq!(reader.header().datalink, DataLink::RAW);
    let first = reader.next_packet().unwrap().unwrap().into_owned();
    assert_eq!(first.timestamp, Duration::new(1_700_000_000, 123_456_000));
    assert_eq!((first.orig_len, &*first.data), (1500, &[0x45; 1500][..]));
    assert_eq!(reader.next_packet().unwrap().unwrap().data.len(), 65_575);
    assert!(reader.next_packet().is_none());
}

fn section(endianness: Endianness) -> PcapNgWriter<Vec<u8>> {
    let section = SectionHeaderBlock {
        endianness,
        ..SectionHeaderBlock::default()
    };
    PcapNgWriter::with_section_header(Vec::new(), section).unwrap()
}

fn packet(interface_id: u32, ticks: u64, data: &[u8]) -> EnhancedPacketBlock<'_> {
    EnhancedPacketBlock {
        interface_id,
        timestamp: Duration::from_nanos(ticks),
        original_len: data.len() as u32 + 1,
        data: data.into(),
        options: vec![],
    }
}

#[test]
fn next_generation_files_of_another_writer() {
    for endianness in [Endianness::Little, Endianness::Big] {
        let mut writer = section(endianness);
        for (linktype, options) in [
            (DataLink::ETHERNET, vec![]),
            (
                DataLink::LINUX_SLL,
                vec![
                    InterfaceDescriptionOption::IfName("eth0".into()),
                    InterfaceDescriptionOption::IfTsResol(9),
                    InterfaceDescriptionOption::IfTsOffset(2),
                ],
            ),
            (
                DataLink::IPV6,
                vec![InterfaceDescriptionOption::IfTsResol(0x8a)],
            ),
        ] {
            let mut block = InterfaceDescriptionBlock::new(linktype, 5);
            block.options = options;
            writer.write_block(&block.into_block()).unwrap();
        }
        writer
            .write_block(&packet(0, 3, b"abcde").into_block())
            .unwrap();
        writer
            .write_block(&packet(1, 3, b"x").into_block())
            .unwrap();
        writer
            .write_block(&packet(2, 1536, b"").into_block())
            .unwrap();
        let simple = SimplePacketBlock {
            original_len: 9,
            data: b"12345"[..].into(),
        };
        writer.write_block(&simple.into_block()).unwrap();
        assert_eq!(
            read(&writer.into_inner()).unwrap(),
            [
                (3_000, LinkType::Ethernet, 6, b"abcde".to_vec()),
                (2_000_000_003, LinkType::LinuxCooked, 2, b"x".to_vec()),
                (1_500_000_000, LinkType::Ipv6, 1, vec![]),
                (0, LinkType::Ethernet, 9, b"12345".to_vec()),
            ],
            "{endianness:?}"
        );
    }
}

#[test]
fn a_new_section_has_its_own_order_and_interfaces() {
    let mut file = Vec::new();
    for (endianness, linktype) in [
        (Endianness::Big, DataLink::RAW),
        (Endianness::Little, DataLink::ETHERNET),
    ] {
        let mut writer = section(endianness);
        let block = InterfaceDescriptionBlock::new(linktype, 0);
        writer.write_block(&block.into_block()).unwrap();
        writer
            .write_block(&packet(0, 0, b"z").into_block())
            .unwrap();
        file.extend(writer.into_inner());
    }
    let links: Vec<LinkType> = read(&file).unwrap().iter().map(|frame| frame.1).collect();
    assert_eq!(links, [LinkType::Raw, LinkType::Ethernet]);
}

#[test]
fn packets_longer_than_the_snap_length_are_read() {
    let mut file = classic(Endianness::Little, TsResolution::MicroSecond);
    file[16..20].copy_from_slice(&2_u32.to_le_bytes());
    assert_eq!(read(&file).unwrap()[0].3, b"abc");
    // A capture that cut the packet short.
    file[24 + 12..24 + 16].copy_from_slice(&1500_u32.to_le_bytes());
    assert_eq!(read(&file).unwrap()[0].2, 1500);
}

#[test]
fn malformed_files_are_refused_at_the_byte() {
    let file = classic(Endianness::Little, TsResolution::MicroSecond);
    assert_eq!(
        error(b"no capture"),
        "c.pcap: byte 0: neither pcap nor pcapng"
    );
    assert_eq!(
        error(b""),
        "c.pcap: byte 0: the file ends inside the magic number"
    );
    assert_eq!(
        error(&file[..23]),
        "c.pcap: byte 23: the file ends inside the file header"
    );
    assert_eq!(
        error(&file[..30]),
        "c.pcap: byte 30: the file ends inside a record header"
    );
    assert_eq!(
        error(&file[..42]),
        "c.pcap: byte 42: the file ends inside a record"
    );
    let mut long = file.clone();
    long[32..36].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    assert_eq!(
        error(&long),
        "c.pcap: byte 32: a record of 2147483647 bytes cannot be"
    );
    let mut wifi = file.clone();
    wifi[20] = 127;
    assert!(error(&wifi).starts_with("c.pcap: byte 20: link type 127 cannot be read"));
    let old = [&[0x34, 0xcd, 0xb2, 0xa1][..], &file[4..]].concat();
    assert!(error(&old).contains("around 1999"));

    let mut writer = section(Endianness::Little);
    let block = InterfaceDescriptionBlock::new(DataLink::RAW, 0);
    writer.write_block(&block.into_block()).unwrap();
    writer
        .write_block(&packet(0, 0, b"zzz").into_block())
        .unwrap();
    let file = writer.into_inner();
    assert_eq!(read(&file).unwrap().len(), 1);
    for cut in 1..file.len() {
        if ![28, 48].contains(&cut) {
            assert!(read(&file[..cut]).is_err(), "{cut}");
        }
    }
    let at = |position: usize, byte: u8| {
        let mut broken = file.clone();
        broken[position] = byte;
        error(&broken)
    };
    assert!(at(8, 0).contains("byte 8: a pcapng section of an unknown"));
    assert!(at(4, 27).contains("byte 4: a section header of 27 bytes"));
    assert!(at(24, 29).contains("byte 24: a block's second length of 29 bytes"));
    assert!(at(32, 21).contains("byte 32: a block of 21 bytes"));
    assert!(at(56, 9).contains("byte 48: a packet of interface 9"));
    assert!(at(68, 99).contains("byte 48: a packet of 99 bytes"));
    assert!(at(36, 105).contains("byte 48: link type 105"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn garbage_never_panics(
        start in 0..6_usize,
        mut bytes in prop::collection::vec(any::<u8>(), 0..300),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
    ) {
        let files = [
            classic(Endianness::Little, TsResolution::MicroSecond),
            classic(Endianness::Big, TsResolution::NanoSecond),
            section(Endianness::Little).into_inner(),
            section(Endianness::Big).into_inner(),
        ];
        if let Some(file) = files.get(start) {
            bytes = [file, &bytes[..]].concat();
        }
        for (index, value) in flips {
            if !bytes.is_empty() {
                let index = index.index(bytes.len());
                bytes[index] = value;
            }
        }
        if let Ok(mut reader) = CaptureReader::new(&bytes[..], String::new()) {
            while let Ok(Some(_)) = reader.next_record() {}
        }
    }
}
