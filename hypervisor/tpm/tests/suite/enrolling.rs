//! Enrolment with stock tools: who knows the reference PCR 17 can enrol the attestation key before the first
//! launch, since its template is public and making it is not using it.

use dolmen_tpm::keys::set_up;
use dolmen_tpm::policy::launch_policy;
use dolmen_tpm::quote::QuotePoll;

use crate::keys::{IMAGE, launched, pcr17, quote, setup};
use crate::swtpm::{Swtpm, Tools};

const MAKE_AK: &str = "tpm2_createprimary -Q -C e -G ecc256:ecdsa-sha256:null -g sha256 -c ak.ctx -L policy \
                       -a fixedtpm|fixedparent|sensitivedataorigin|restricted|sign";

fn make_ak(tools: &Tools<'_>) {
    tools.write("policy", &launch_policy(&pcr17(IMAGE)));
    tools.run(MAKE_AK);
    tools.run("tpm2_flushcontext -t");
    tools.run("tpm2_readpublic -Q -c ak.ctx -n ak.name");
    tools.run("tpm2_flushcontext -t");
}

#[test]
fn the_key_is_enrolled_by_credential_activation_before_the_first_launch() {
    let mut tpm = Swtpm::new();
    let mut enrolled = Vec::new();
    tpm.with_tools(|tools| {
        make_ak(tools);
        enrolled = tools.read("ak.name");
        tools.write("secret", b"a challenge of the enroller's");
        let name: String = enrolled.iter().map(|byte| format!("{byte:02x}")).collect();
        tools.run("tpm2_createek -Q -G ecc -c ek.ctx -u ek.pub");
        tools.run("tpm2_flushcontext -t");
        tools.run(&format!("tpm2_makecredential -Q -T none -u ek.pub -s secret -n {name} -o credential"));
        tools.run("tpm2_startauthsession --policy-session -S session");
        tools.run("tpm2_policysecret -Q -S session -c e");
        tools
            .run("tpm2_activatecredential -Q -c ak.ctx -C ek.ctx -i credential -o opened -P session:session");
        tools.run("tpm2_flushcontext -t");
        assert_eq!(tools.read("opened"), tools.read("secret"));
    });

    tpm.dynamic_launch(IMAGE);
    tpm.set_locality(2);
    let keys = set_up(&mut tpm, &setup(IMAGE)).unwrap();

    assert_eq!(keys.ak.name, enrolled[..]);
}

#[test]
#[should_panic(expected = "not available for selected entity")]
fn stock_tools_cannot_quote_with_it_without_its_policy() {
    launched().with_tools(|tools| {
        make_ak(tools);
        tools.run("tpm2_quote -Q -c ak.ctx -l sha256:17,18 -q ab -m message -s signature");
    });
}

#[test]
#[should_panic(expected = "bad locality")]
fn stock_tools_cannot_quote_with_it_even_after_our_launch_since_they_are_not_at_our_locality() {
    launched().with_tools(|tools| {
        make_ak(tools);
        tools.run("tpm2_startauthsession --policy-session -S session");
        tools.run("tpm2_policypcr -Q -S session -l sha256:17");
        tools.run("tpm2_policylocality -Q -S session two");
        tools.run("tpm2_quote -Q -c ak.ctx -p session:session -l sha256:17,18 -q ab -m message -s signature");
    });
}

#[test]
fn the_tools_leave_the_tpm_usable_by_us() {
    let mut tpm = launched();
    tpm.with_tools(make_ak);
    tpm.set_locality(2);
    let keys = set_up(&mut tpm, &setup(IMAGE)).unwrap();
    assert!(matches!(quote(&mut tpm, &keys, [1; 32]), QuotePoll::Done(_)));
}
