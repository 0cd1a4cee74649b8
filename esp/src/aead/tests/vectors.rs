//! Published ESP packets, byte for byte.

use super::*;

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

/// Seals and opens a published packet with every implementation that has the suite.
///
/// `sequence` is what is authenticated: 4 bytes, or 8 with ESN. `sealed` begins after the IV.
fn check(suite: &str, key: &str, spi: &str, sequence: &str, iv: &str, text: &str, sealed: &str) {
    let suite = Suite::by_name(suite).unwrap();
    let key = unhex(key);
    let esn = sequence.len() == 16;
    let head = unhex(&[spi, &sequence[sequence.len() - 8..], iv].concat());
    let text = unhex(text);
    let expected = [head.clone(), unhex(sealed)].concat();
    let clear = [head, text.clone(), vec![0; suite.icv_len]].concat();
    let sequence = u64::from_str_radix(sequence, 16).unwrap();
    let mut implementations = 0;
    for implementation in Implementation::available().filter(|each| each.supports(suite)) {
        implementations += 1;
        let cipher = Cipher::with_implementation(suite, &key, &[], implementation).unwrap();
        let mut esp = clear.clone();
        seal(&cipher, sequence, esn, &mut esp);
        assert_eq!(esp, expected, "{suite} by {implementation}");
        assert!(open(&cipher, sequence, esn, &mut esp));
        assert_eq!(text_of(suite, &esp), text);
    }
    assert!(implementations > 0);
}

/// draft-mcgrew-gcm-test-01 section 4, in the order of the draft.
#[test]
fn mcgrew_gcm() {
    check(
        "aes128gcm16",
        "4c80cdefbb5d10da906ac73c3613a6342e443b68",
        "00004321",
        "8765432100000000",
        "4956ed7e3b244cfe",
        "45000048699a000080114db7c0a80102c0a801010a9bf15638d301000001000000000000\
         045f736970045f756470037369700963796265726369747902646b000021000101020201",
        "fecf537e729d5b07dc30df528dd22b768d1b98736696a6fd348509fa13ceac34cfa2436f\
         14a3f3cf65925bf1f4a13c5d15b21e1884f5ff6247aeabb786b93bce61bc17d768fd9732\
         459018148f6cbe722fd04796562dfdb4",
    );
    check(
        "aes128gcm16",
        "feffe9928665731c6d6a8f9467308308cafebabe",
        "0000a5f8",
        "0000000a",
        "facedbaddecaf888",
        "4500003e698f000080114dccc0a80102c0a801010a980035002a2343b2d0010000010000\
         00000000037369700963796265726369747902646b00000100010001",
        "deb22cd9b07c72c16e3a65beeb8df304a5a5897d33ae530f1ba76d5d114d2a5c3de81827\
         c10e9a4f51330d0eec416642cfbb85a5b47e48a4ec3b9ba95d918bd1\
         83b70d3aa8bc6ee4c309e9d85a41ad4a",
    );
    check(
        "aes256gcm16",
        "abbccddef00112233445566778899aababbccddef00112233445566778899aab11223344",
        "4a2cbfe3",
        "00000002",
        "0102030405060708",
        "4500003069a6400080062690c0a801029389155e0a9e008b2dc57ee00000000070024000\
         20bf0000020405b40101040201020201",
        "ff425c9b724599df7a3bcd510194e00d6a78107f1b0b1cbf06efae9d65a5d763748a6379\
         85771d347f0545659f14e99def842d8e\
         b335f4eecfdbf831824b4c4915956c96",
    );
    check(
        "aes128gcm16",
        "3de09874b388e6491988d0c3607eae1f57690e43",
        "42f67e3f",
        "1010101010101010",
        "4e280000a2fca1a3",
        "4500001c42a200008001441f406793b6e00000020a00f5ff01020201",
        "fba2ca845e5df9f0f22c3e6e86dd831e1fc65792cd1af9130e1379ed\
         369f071f35e034be95f112e4e7d05d35",
    );
    check(
        "aes192gcm16",
        "feffe9928665731c6d6a8f9467308308feffe9928665731ccafebabe",
        "0000a5f8",
        "0000000a",
        "facedbaddecaf888",
        "45000028a4ad4000400678800a01038f0a010612802306b8cb712602dd6bb03e501016d0\
         75680001",
        "a5b1f8066029aea40e598b8122de02420938b3ab33f828e687b8858b5bfbdbd0315b2745\
         2144cc77\
         95457b9652037f5318027b5b4cd7a636",
    );
    check(
        "aes256gcm16",
        "abbccddef00112233445566778899aababbccddef00112233445566778899aab73616c74",
        "17405e67",
        "156f3126dd0db99b",
        "616e640169766563",
        "45080028732c00004006e9f90a0106120a01038f06b88023dd6bafbecb71260250101f64\
         6d540001",
        "f2d69ecdbd5a0d5b8d5ef38bad4da58d1f278fde98ef67549d524a3018d9a57ff4d3a31c\
         e673119e\
         451626c2415771e3b7eebca614c89b35",
    );
    check(
        "aes128gcm16",
        "7d773d00c144c525ac619d18c84a3f47d9664267",
        "335467ae",
        "ffffffff",
        "43457e9182443bc6",
        "01020201",
        "437f866bcb3f699fe9b0822bac961c4504bef270",
    );
    check(
        "aes256gcm16",
        "6c6567616c697a656d6172696a75616e61616e64646f69746265666f726569617475726e",
        "796b6963",
        "ffffffffffffffff",
        "333021696765746d",
        "45000030da3a00008001df3bc0a80005c0a800010800c6cd020007006162636465666768\
         696a6b6c6d6e6f707172737401020201",
        "f97ab2aa356d8edce17644ac8c78e25dd24dedbb29ebf1b64a274b39b49c3a864cd3d78c\
         a4ae68a32b42458fb57dbe821dcc63b9\
         d0937ba2945f669368661a329fb4c053",
    );
}

/// The same packets with the ICV cut to the lengths that RFC 4106 section 6 allows: a shorter
/// tag is the beginning of the long one (NIST SP 800-38D section 7.1).
#[test]
fn short_icvs_are_truncated() {
    for (suite, icv) in [
        ("aes128gcm8", "cb3f699fe9b0822b"),
        ("aes128gcm12", "cb3f699fe9b0822bac961c45"),
    ] {
        check(
            suite,
            "7d773d00c144c525ac619d18c84a3f47d9664267",
            "335467ae",
            "ffffffff",
            "43457e9182443bc6",
            "01020201",
            &["437f866b", icv].concat(),
        );
    }
}

/// The GMAC packet of draft-mcgrew-gcm-test-01.
#[test]
fn mcgrew_gmac() {
    let text = "45000030da3a00008001df3bc0a80005c0a800010800c6cd020007006162636465666768\
                696a6b6c6d6e6f707172737401020201";
    check(
        "aes128gmac",
        "4c80cdefbb5d10da906ac73c3613a63422433c64",
        "00004321",
        "00000007",
        "0000000000000000",
        text,
        &[text, "f2a9a836e155106aa8dcd618e4099aaa"].concat(),
    );
}

/// RFC 7634 appendix A.
#[test]
fn rfc7634_packet() {
    check(
        "chacha20poly1305",
        "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3",
        "01020304",
        "00000005",
        "1011121314151617",
        "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec1000073627\
         08090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b\
         2c2d2e2f303132333435363701020204",
        "24039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c614ee8099\
         d52844eb61aa95dfab4c02f72aa71e7c4c4f64c9befe2facc638e8f3cbec163fac469b50\
         2773f6fb94e664da9165b82829f641e0\
         76aaa8266b7fb0f7b11b369907e1ad43",
    );
}

/// What NULL with HMAC-SHA2-256-128 sends, by RFC 4231 test case 1: its message "Hi There"
/// taken as SPI and sequence number of a packet without text.
#[test]
fn rfc4231_as_a_packet() {
    let suite = Suite::by_name("null-sha256").unwrap();
    // The test case has a key of 20 bytes; HMAC pads keys with zeroes (RFC 2104 section 2).
    let mut auth_key = [0x0b; 32];
    auth_key[20..].fill(0);
    for implementation in Implementation::available().filter(|each| each.supports(suite)) {
        let cipher = Cipher::with_implementation(suite, &[], &auth_key, implementation).unwrap();
        let mut esp = [b"Hi There".as_slice(), &[0; 16]].concat();
        seal(&cipher, 0, false, &mut esp);
        assert_eq!(esp[8..], unhex("b0344c61d8db38535ca8afceaf0bf12b"));
    }
}
