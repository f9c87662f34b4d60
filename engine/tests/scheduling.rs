//! Serving many sequences: whatever comes and goes beside it, and however little of the cache it gets, a sequence writes
//! what it would write alone, and every page comes back.

mod support;

use engine::drafts::DraftOptions;
use engine::gguf::GgmlType;
use engine::kv::{KvLayout, KvOptions, KvType, PAGE};
use engine::sampler::SamplerParams;
use engine::scheduler::{Scheduler, SeqId, Stats};
use engine::{BackendChoice, Engine, EngineOptions, RequestError};
use support::{TinyModel, TinySpec, tokens};

const FLOATS: [GgmlType; 3] = [GgmlType::F32, GgmlType::F16, GgmlType::BF16];
const MIX: [GgmlType; 4] = [GgmlType::Q4_K, GgmlType::Q6_K, GgmlType::Q8_0, GgmlType::F16];
const N_CTX: usize = 256;

/// A small generator for what happens when.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// What one sequence is to do.
#[derive(Clone)]
struct Script {
    prompt: Vec<u32>,
    seed: u64,
    temperature: f32,
    /// After so many tokens it waits, and goes on behind these.
    pauses: Vec<(usize, Vec<u32>)>,
    /// Tokens to draw.
    n: usize,
    /// It is cancelled after so many.
    cancelled_after: Option<usize>,
}

impl Script {
    fn random(dice: &mut Dice, n_vocab: usize, seed: u64) -> Script {
        // Few prompts, with common beginnings.
        let family = tokens(60, n_vocab, dice.below(2) as u64);
        // Half of them are attempts at the same problem.
        let (n_common, n_own) = if dice.below(2) == 0 { (45, 0) } else { (20 + dice.below(40), dice.below(4)) };
        let mut prompt = family[..n_common].to_vec();
        prompt.extend(tokens(n_own, n_vocab, seed));
        let n = 10 + dice.below(60);
        let mut pauses: Vec<(usize, Vec<u32>)> = (0..dice.below(3))
            .map(|i| (1 + dice.below(n), tokens(1 + dice.below(20), n_vocab, seed + i as u64)))
            .collect();
        pauses.sort_by_key(|p| p.0);
        pauses.dedup_by_key(|p| p.0);
        let cancelled_after = (dice.below(4) == 0).then(|| dice.below(n));
        // The likeliest token leads into repetitions, which drafts find.
        let temperature = [0.0, 0.0, 1.0][dice.below(3)];
        Script { prompt, seed, temperature, pauses, n, cancelled_after }
    }

    fn sampling(&self) -> SamplerParams {
        SamplerParams {
            temperature: self.temperature,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: self.seed,
            ..SamplerParams::default()
        }
    }

    /// What it waits for after `n` tokens.
    fn pause_after(&self, n: usize) -> Option<&[u32]> {
        self.pauses.iter().find(|p| p.0 == n).map(|p| &p.1[..])
    }

    fn is_over(&self, n: usize) -> bool {
        n >= self.n || self.cancelled_after.is_some_and(|c| n > c)
    }
}

/// Loads with a cache of `n_alone` sequences' bytes; 0 for no bound.
fn load(model: &TinyModel, n_seq: usize, n_alone: f64, kv: KvOptions) -> Engine {
    let mut options = EngineOptions {
        backend: BackendChoice::Cpu,
        n_ctx: N_CTX,
        n_seq,
        n_batch: 32,
        n_threads: 2,
        n_outputs: 32,
        exact: false,
        kv,
        ..EngineOptions::default()
    };
    if n_alone > 0.0 {
        options.kv_bytes = Some(1);
        let error = Engine::load(&model.path, &options, &mut |_, _| {}).err().expect("too small");
        let engine::Error::Request(RequestError::CacheTooSmall { bytes: 1, least }) = error else { panic!("{error}") };
        options.kv_bytes = Some((least as f64 * n_alone) as u64);
    }
    Engine::load(&model.path, &options, &mut |_, _| {}).expect("a loaded model")
}

/// Plays all scripts, in random order and company; gives what each wrote.
fn play(scheduler: &mut Scheduler, scripts: &[Script], dice: &mut Dice) -> Vec<Vec<u32>> {
    struct Live {
        id: SeqId,
        script: usize,
        /// Steps until it goes on.
        waits: Option<usize>,
    }
    let mut written = vec![Vec::new(); scripts.len()];
    let (mut live, mut next): (Vec<Live>, usize) = (Vec::new(), 0);
    let n_seq = scheduler.engine().n_seq();
    let mut n_steps = 0;
    while next < scripts.len() || !live.is_empty() {
        while next < scripts.len() && live.len() < n_seq && (live.is_empty() || dice.below(3) == 0) {
            let script = &scripts[next];
            // Sometimes those at the same problem come together.
            let n_together = scripts[next..].iter().take_while(|s| s.prompt == script.prompt).count();
            for script in &scripts[next..next + n_together.min(n_seq - live.len())] {
                let id = scheduler.start(&script.prompt, &script.sampling()).expect("a slot");
                live.push(Live { id, script: next, waits: None });
                next += 1;
            }
        }
        for l in &mut live {
            l.waits = l.waits.map(|n| n.saturating_sub(1));
            if l.waits == Some(0) {
                let more = scripts[l.script].pause_after(written[l.script].len()).expect("it waits");
                scheduler.append(l.id, more).expect("room");
                l.waits = None;
            }
        }
        n_steps += 1;
        assert!(n_steps < 100_000, "nothing gets further");
        for event in scheduler.step().expect("a step") {
            let at = live.iter().position(|l| l.id == event.seq).expect("a live sequence");
            let l = &mut live[at];
            let (script, out) = (&scripts[l.script], &mut written[l.script]);
            out.push(event.token);
            if script.is_over(out.len()) || event.end.is_some() {
                scheduler.release(l.id);
                live.remove(at);
            } else if script.pause_after(out.len()).is_some() {
                scheduler.pause(l.id);
                l.waits = Some(1 + dice.below(12));
            }
        }
    }
    written
}

/// Random company on a cache that holds few of the sequences; gives what became of it.
fn random_company(model: &TinyModel, n_alone: f64, kv: KvOptions, drafts: DraftOptions, seed: u64) -> Stats {
    let mut dice = Dice(seed);
    let scripts: Vec<Script> = (0..14).map(|i| Script::random(&mut dice, model.n_vocab, 100 * seed + 10 * i)).collect();
    let mut scheduler = Scheduler::new(load(model, 5, n_alone, kv)).with_drafts(drafts);
    let together = play(&mut scheduler, &scripts, &mut dice);
    for (i, (script, together)) in scripts.iter().zip(&together).enumerate() {
        let mut alone = Scheduler::new(load(model, 1, 0.0, kv));
        let alone = play(&mut alone, std::slice::from_ref(script), &mut Dice(1));
        assert_eq!(together, &alone[0], "script {i} of {}", model.spec.arch);
    }
    // A sequence that fills the context needs every page of a cache that holds just one.
    let stats = scheduler.stats();
    if n_alone == 1.0 {
        let prompt = tokens(N_CTX - 1, model.n_vocab, 99);
        let id = scheduler.start(&prompt, &scripts[0].sampling()).expect("a slot");
        let mut n = 0;
        while scheduler.has_work() {
            n += scheduler.step().expect("no page was lost").len();
        }
        assert_eq!(n, 1);
        scheduler.release(id);
    }
    stats
}

#[test]
fn sequences_write_the_same_in_any_company_and_with_few_pages() {
    let (f16, q8_0) = (KvOptions::default(), KvOptions { k: KvType::Q8_0, v: KvType::Q8_0 });
    let off = DraftOptions::default();
    let mut n_preempted = 0;
    for (seed, n_alone, kv) in [(1, 0.0, f16), (2, 1.0, f16), (3, 1.6, f16), (4, 1.0, q8_0)] {
        for model in &models() {
            let stats = random_company(model, n_alone, kv, off, seed);
            assert!(n_alone > 0.0 || stats.n_preempted == 0, "without a bound nobody gives way: {stats:?}");
            assert_eq!(stats.drafted_tokens, 0);
            n_preempted += stats.n_preempted;
            println!("{} {kv} {n_alone}: {stats:?}", model.spec.arch);
        }
    }
    assert!(n_preempted > 10, "only {n_preempted} sequences gave way: the caches are not small enough to test much");
}

/// Drafts that are tried wherever there are any, right and wrong ones, beside pauses, cancels and a lack of pages.
#[test]
fn sequences_write_the_same_with_drafts() {
    let (mut n_drafted, mut n_accepted) = (0, 0);
    for (seed, n_alone, drafts) in [
        (5, 0.0, DraftOptions { max: 5, min: 5 }),
        (6, 1.0, DraftOptions { max: 3, min: 3 }),
        (8, 0.0, DraftOptions { max: 8, min: 8 }),
        (7, 0.0, DraftOptions { max: 8, min: 0 }),
    ] {
        for model in &models() {
            let stats = random_company(model, n_alone, KvOptions::default(), drafts, seed);
            println!("{} {n_alone} {drafts:?}: {stats:?}", model.spec.arch);
            assert!(stats.accepted_tokens <= stats.drafted_tokens);
            // How many of the adaptive drafts are tried depends on measured times.
            if drafts.min == drafts.max {
                n_drafted += stats.drafted_tokens;
                n_accepted += stats.accepted_tokens;
            }
        }
    }
    assert!(n_accepted > 100 && n_drafted - n_accepted > 100, "{n_accepted} of {n_drafted} accepted: too one-sided");
}

/// Attempts at one problem: its prompt is computed once, and one row of logits gives each its own first token, also for
/// those that come later.
#[test]
fn attempts_at_one_problem_have_their_first_tokens_in_one_pass() {
    for model in &models() {
        let prompt = tokens(70, model.n_vocab, 3);
        let script = |seed| Script {
            prompt: prompt.clone(),
            seed,
            // Of a tiny model whose likeliest token is nearly certain.
            temperature: 30.0,
            pauses: Vec::new(),
            n: 40,
            cancelled_after: None,
        };
        let mut scheduler = Scheduler::new(load(model, 6, 0.0, KvOptions::default()));
        let mut n_shared = 0;
        // Chunks of the prompt; the second time it is still there but for its last token.
        for (wave, n_passes) in [(0, 3), (1, 1)] {
            let scripts: Vec<Script> = (0..6).map(|i| script(10 * wave + i)).collect();
            let start = |s: &Script| scheduler.start(&s.prompt, &s.sampling()).expect("a slot");
            let ids: Vec<SeqId> = scripts.iter().map(start).collect();
            let first: Vec<_> = (0..n_passes).flat_map(|_| scheduler.step().expect("a step")).collect();
            assert_eq!(first.iter().map(|e| e.seq).collect::<Vec<_>>(), ids, "wave {wave} of {}", model.spec.arch);
            let stats = scheduler.stats();
            assert_eq!(stats.prompt_tokens, 70, "computed once, in the first wave");
            n_shared += 70 * 6 - if wave == 0 { 70 } else { 1 };
            assert_eq!(stats.shared_tokens, n_shared);
            let mut written: Vec<Vec<u32>> = first.iter().map(|e| vec![e.token]).collect();
            while written[0].len() < 40 {
                for event in scheduler.step().expect("a step") {
                    written[ids.iter().position(|id| *id == event.seq).expect("one of them")].push(event.token);
                }
            }
            ids.into_iter().for_each(|id| scheduler.release(id));
            assert!(written.iter().any(|w| *w != written[0]), "seeds make a difference");
            for (script, written) in scripts.iter().zip(written) {
                let mut alone = Scheduler::new(load(model, 1, 0.0, KvOptions::default()));
                assert_eq!(written, play(&mut alone, std::slice::from_ref(script), &mut Dice(1))[0]);
            }
        }
    }
}

/// With 8-bit activations, whose products take other kernels for one token, for several and for many.
fn models() -> [TinyModel; 2] {
    let windows = TinySpec { n_layer: 3, window: 20, ..TinySpec::new("gpt-oss", &MIX) };
    [TinySpec::new("qwen2", &MIX), windows].map(TinyModel::new)
}

/// Attempts as they are served, from short to long: one prompt; one that has its tokens makes place for the next.
#[test]
fn little_of_the_cache_is_wasted() {
    let model = TinyModel::new(TinySpec::new("qwen2", &FLOATS));
    for (n_prompt, n_tokens) in [(60, 150), (210, 1000)] {
        let n_ctx = n_prompt + n_tokens;
        let options =
            EngineOptions { backend: BackendChoice::Cpu, n_ctx, n_seq: 8, n_threads: 2, ..EngineOptions::default() };
        let engine = Engine::load(&model.path, &options, &mut |_, _| {}).expect("a loaded model");
        let mut scheduler = Scheduler::new(engine);
        let prompt = tokens(n_prompt, model.n_vocab, 3);
        let mut seed = 0;
        let mut start = |scheduler: &mut Scheduler| {
            seed += 1;
            scheduler.start(&prompt, &SamplerParams { seed, ..SamplerParams::default() }).expect("a slot")
        };
        for _ in 0..8 {
            start(&mut scheduler);
        }
        let mut wastes = Vec::new();
        for i in 0..n_tokens {
            for event in scheduler.step().expect("a step") {
                if event.end.is_some() {
                    scheduler.release(event.seq);
                    start(&mut scheduler);
                }
            }
            // Once they are half as long as they get.
            if i > n_tokens / 2 && i % 5 == 0 {
                wastes.push(scheduler.engine().kv().occupancy().waste());
            }
        }
        let mean = wastes.iter().sum::<f64>() / wastes.len() as f64;
        let (now, peak) = (scheduler.engine().kv().occupancy(), scheduler.stats().kv_peak);
        println!(
            "8 sequences of {n_tokens} tokens: on average {:.2} % of the pages in use wasted; at the peak of {} pages {:.2} %",
            100.0 * mean,
            peak.n_pages,
            100.0 * peak.waste(),
        );
        // The peak is a step in which all eight, side by side, have just begun a page.
        assert!(mean < 0.04 && peak.waste() < 0.05, "{mean} on average, {peak:?}");
        // The prompt is there once, not eight times.
        assert!(now.n_pages < (8 * n_tokens + n_prompt) / PAGE + 8 * 3, "{now:?}");
    }
}

#[test]
fn a_cache_is_cut_to_the_bytes_allowed() {
    use engine::backend::Limits;
    let model = TinyModel::new(TinySpec { n_layer: 3, window: 20, ..TinySpec::new("gpt-oss", &FLOATS) });
    let engine = load(&model, 1, 0.0, KvOptions::default());
    let config = engine.config();
    let limits = |kv_bytes| {
        let kv = KvOptions::default();
        Limits { n_batch: 32, n_outputs: 1, n_seq: 6, n_ctx: 4096, kv, kv_bytes }
    };
    let layout = |kv_bytes| KvLayout::new(config, &limits(kv_bytes));
    let bytes = |layout: &KvLayout| -> u64 {
        (0..config.n_layer()).map(|il| layout.options.bytes(layout.layer_elements(config, il) as u64)).sum()
    };
    let full = layout(None).expect("no bound");
    let Err(RequestError::CacheTooSmall { least, .. }) = layout(Some(0)) else { panic!("0 bytes hold nothing") };
    assert!(least < bytes(&full));
    assert_eq!(bytes(&layout(Some(least)).expect("one sequence")), least);
    assert!(layout(Some(least - 1)).is_err());
    for allowed in [least + 100_000, least * 2, least * 5, bytes(&full), u64::MAX] {
        let cut = layout(Some(allowed)).expect("room");
        assert!(bytes(&cut) <= allowed.min(bytes(&full)));
        // A page more, of the layers that see everything, would be too much, or is of no use.
        let page = (bytes(&full) / full.kinds.iter().map(|k| k.n_pages as u64).max().expect("a kind")) * 2;
        assert!(bytes(&cut) + page > allowed.min(bytes(&full)), "{allowed}: {cut:?}");
    }
}

/// A pass that starts a sequence over behind what its windows have kept is refused, and the sequence can start over.
#[test]
fn starting_over_behind_a_window_is_an_error() {
    use engine::backend::BatchToken;
    let model = TinyModel::new(TinySpec { n_layer: 3, window: 20, ..TinySpec::new("gpt-oss", &FLOATS) });
    let mut engine = load(&model, 1, 0.0, KvOptions::default());
    let text = tokens(120, model.n_vocab, 5);
    let batch = |from: usize, to: usize| -> Vec<BatchToken> {
        let token = |pos: usize| BatchToken { token: text[pos], seq: 0, pos: pos as u32, output: pos + 1 == to };
        (from..to).map(token).collect()
    };
    for from in (0..120).step_by(20) {
        engine.forward(&batch(from, from + 20)).expect("a pass");
    }
    engine.forward(&batch(119, 120)).expect("the last position again");
    let want = engine.forward(&batch(119, 120)).expect("and again").to_vec();
    match engine.forward(&batch(30, 40)) {
        Err(engine::Error::Request(RequestError::WindowPassed { position: 30, n_stored: 120 })) => {}
        other => panic!("{:?}", other.map(|l| l.len())),
    }
    for from in (0..120).step_by(20) {
        engine.forward(&batch(from, from + 20)).expect("from the beginning");
    }
    let again = engine.forward(&batch(119, 120)).expect("the same place");
    assert!(support::cosine(again, &want.into_iter().map(f64::from).collect::<Vec<_>>()) > 0.999_999);
}
