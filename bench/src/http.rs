//! The agent's HTTP front: `/healthz` beside a minimal axum server, and durable submissions beside its own `/healthz` and
//! the device. Slices take turns within each round.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::floor::Bracket;
use crate::http_load::{self, Drive, Rate};
use crate::http_servers::{ServerProcess, get};
use crate::slice::Workplace;
use crate::stats::{Random, Spread, grouped};
use crate::{Fault, INTERRUPTED, machine};

/// Connections at once, few and many.
const CONNECTIONS: [usize; 2] = [4, 64];
/// Submissions per second where the latency of an agent that is not saturated is asked for: far more than an engine could run.
const PACE: f64 = 2000.0;
/// Time of each measurement of the device.
const FLOOR: Duration = Duration::from_millis(500);
/// How long a round waits at most for a throttled device.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is measured, and for how long.
pub struct Plan {
    pub rounds: usize,
    pub warm_up: Duration,
    pub measured: Duration,
    pub seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    Agent,
    Axum,
    Submit,
    /// The same at [`PACE`].
    Paced,
}

/// A slice, and the CPU time that its server took for each request.
#[derive(Clone, Copy)]
struct Slice {
    rate: Rate,
    cpu_us: f64,
}

/// What one round gave: of each number of connections the three loads, the last beside the device.
#[derive(Clone, Copy)]
struct Round {
    agent: [Slice; 2],
    axum: [Slice; 2],
    submit: [(Slice, Bracket); 2],
    paced: (Slice, Bracket),
}

/// Measures, and prints the tables.
pub fn run(dir: &Path, agent: &Path, plan: &Plan) -> Result<(), Fault> {
    let mut place = Workplace::create(dir)?;
    println!(
        "{}\n* rounds {}, slices {:?} after {:?}, seed {}",
        machine::facts(dir),
        plan.rounds,
        plan.measured,
        plan.warm_up,
        plan.seed
    );
    let axum = ServerProcess::axum()?;
    let mut random = Random(plan.seed);
    let mut rounds = Vec::new();
    for number in 1..=plan.rounds {
        if INTERRUPTED.load(Ordering::Relaxed) {
            break;
        }
        let round = round(&mut place, &axum, agent, plan, &mut random)?;
        eprintln!(
            "round {number}: agent {:.0}/s, axum {:.0}/s, submissions {:.0}/s",
            round.agent[1].rate.per_second, round.axum[1].rate.per_second, round.submit[1].0.rate.per_second
        );
        rounds.push(round);
    }
    print(&rounds)
}

fn round(
    place: &mut Workplace,
    axum: &ServerProcess,
    binary: &Path,
    plan: &Plan,
    random: &mut Random,
) -> Result<Round, Fault> {
    let dir = place.empty()?;
    // A new one each round: the ledger is then as long as the last time.
    let mut agent = ServerProcess::agent(binary, &dir)?;
    slices(place, axum, &agent, plan, random).map_err(|fault| format!("{fault}\nThe agent: {}", agent.state()).into())
}

fn slices(
    place: &mut Workplace,
    axum: &ServerProcess,
    agent: &ServerProcess,
    plan: &Plan,
    random: &mut Random,
) -> Result<Round, Fault> {
    let (mut of_agent, mut of_axum) = ([None; 2], [None; 2]);
    let mut turns: Vec<(usize, Load)> =
        (0..CONNECTIONS.len()).flat_map(|index| [(index, Load::Agent), (index, Load::Axum)]).collect();
    random.shuffle(&mut turns);
    for (index, load) in turns {
        let (server, into) = if load == Load::Agent { (agent, &mut of_agent) } else { (axum, &mut of_axum) };
        into[index] = Some(measure(server, load, CONNECTIONS[index], plan, &mut 0)?);
    }
    // Last, since what they leave behind in the agent is not part of the others.
    let mut submitted = 0;
    let mut bracketed = |load, connections| -> Result<(Slice, Bracket), Fault> {
        let (before, _) = place.floor().measure_patiently(FLOOR, PATIENCE)?;
        let slice = measure(agent, load, connections, plan, &mut submitted)?;
        Ok((slice, Bracket { before, after: place.floor().measure(FLOOR)? }))
    };
    let paced = bracketed(Load::Paced, CONNECTIONS[1])?;
    let submit = [bracketed(Load::Submit, CONNECTIONS[0])?, bracketed(Load::Submit, CONNECTIONS[1])?];
    check_all_received(agent.address, submitted)?;
    let missing = || Fault::from("a slice was left out");
    let both = |slices: [Option<Slice>; 2]| Some([slices[0]?, slices[1]?]);
    Ok(Round { agent: both(of_agent).ok_or_else(missing)?, axum: both(of_axum).ok_or_else(missing)?, submit, paced })
}

fn measure(
    server: &ServerProcess,
    load: Load,
    connections: usize,
    plan: &Plan,
    submitted: &mut u64,
) -> Result<Slice, Fault> {
    let mut next = |into: &mut Vec<u8>| match load {
        Load::Agent | Load::Axum => into.extend_from_slice(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        Load::Submit | Load::Paced => {
            *submitted += 1;
            submission(*submitted, into);
        }
    };
    let before = server.cpu()?;
    let per_second = (load == Load::Paced).then_some(PACE);
    let drive = Drive { connections, per_second, warm_up: plan.warm_up, measured: plan.measured };
    let rate = http_load::run(server.address, drive, &mut next)
        .map_err(|fault| format!("{load:?} at {connections} connections: {fault}"))?;
    let cpu = server.cpu()?.saturating_sub(before);
    Ok(Slice { rate, cpu_us: cpu.as_secs_f64() * 1e6 / rate.answered as f64 })
}

fn submission(number: u64, into: &mut Vec<u8>) {
    let body = format!("{{\"job_id\":\"bench.{number}\",\"image_hash\":\"busybox:latest\",\"command\":[\"true\"]}}");
    let head = format!(
        "POST /api/submit_job HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    into.extend_from_slice(head.as_bytes());
    into.extend_from_slice(body.as_bytes());
}

/// Each answered submission is a job of its own, and none has left its first state.
fn check_all_received(address: SocketAddr, submitted: u64) -> Result<(), Fault> {
    let node = get(address, "/api/node")?;
    if node.contains(&format!("\"RECEIVED\":{submitted},")) || node.contains(&format!("\"RECEIVED\":{submitted}}}")) {
        return Ok(());
    }
    Err(format!("{submitted} submissions were answered, and the agent does not hold as many jobs: {node}").into())
}

/// A number of a round.
type OfRound<'a> = &'a dyn Fn(&Round) -> f64;

fn print(rounds: &[Round]) -> Result<(), Fault> {
    let spread = |each: OfRound<'_>| Spread::of(rounds.iter().map(each)).ok_or("no round was measured");
    println!("\n| requests | connections | requests/s | p50 µs | p99 µs | server's CPU µs each |");
    println!("|---|--:|--:|--:|--:|--:|");
    let row = |name: &str, connections: usize, slice: &dyn Fn(&Round) -> Slice| -> Result<(), Fault> {
        println!(
            "| {name} | {connections} | {} | {:.0} | {:.0} | {:.1} |",
            range(spread(&|round| slice(round).rate.per_second)?),
            spread(&|round| slice(round).rate.p50_us)?.median,
            spread(&|round| slice(round).rate.p99_us)?.median,
            spread(&|round| slice(round).cpu_us)?.median,
        );
        Ok(())
    };
    for (index, connections) in CONNECTIONS.into_iter().enumerate() {
        row("GET /healthz, agent", connections, &|round| round.agent[index])?;
        row("GET /healthz, axum", connections, &|round| round.axum[index])?;
        row("POST /api/submit_job, durable", connections, &|round| round.submit[index].0)?;
    }
    row(&format!("… at {PACE}/s"), CONNECTIONS[1], &|round| round.paced.0)?;
    let device = |bracket: &Bracket| (bracket.before.p99_us + bracket.after.p99_us) / 2.0;
    let brackets = |round: &Round| [round.submit[0].1, round.submit[1].1, round.paced.1];
    let floors = |each: &dyn Fn(Bracket) -> f64| spread(&|round| brackets(round).map(each).iter().sum::<f64>() / 3.0);
    println!(
        "\nThe device, 4 KiB with O_DIRECT|O_DSYNC, before and after each slice of submissions: {} writes/s, p50 {:.0} µs, \
         p99 {:.0} µs; {} of {} slices between unlike or throttled floors.",
        range(floors(&|bracket| bracket.per_second())?),
        floors(&|bracket| (bracket.before.p50_us + bracket.after.p50_us) / 2.0)?.median,
        floors(&|bracket| device(&bracket))?.median,
        rounds.iter().flat_map(brackets).filter(|bracket| !bracket.is_stable()).count(),
        3 * rounds.len()
    );
    println!("\n| ratio, of one round's slices | connections | median (least..most) |\n|---|--:|--:|");
    for (index, connections) in CONNECTIONS.into_iter().enumerate() {
        let ratios: [(&str, OfRound<'_>); 4] = [
            ("GET: agent ÷ axum", &|r| r.agent[index].rate.per_second / r.axum[index].rate.per_second),
            ("submissions ÷ GET of the agent", &|r| {
                r.submit[index].0.rate.per_second / r.agent[index].rate.per_second
            }),
            ("submissions ÷ writes of the device", &|r| {
                r.submit[index].0.rate.per_second / r.submit[index].1.per_second()
            }),
            ("p99 of submissions ÷ p99 of the device", &|r| {
                r.submit[index].0.rate.p99_us / device(&r.submit[index].1)
            }),
        ];
        for (name, ratio) in ratios {
            println!("| {name} | {connections} | {} |", ratios_of(spread(ratio)?));
        }
    }
    let paced = spread(&|round| round.paced.0.rate.p99_us / device(&round.paced.1))?;
    println!("| … at {PACE}/s | {} | {} |", CONNECTIONS[1], ratios_of(paced));
    Ok(())
}

fn ratios_of(Spread { min, median, max }: Spread) -> String {
    format!("{median:.2} ({min:.2}..{max:.2})")
}

fn range(spread: Spread) -> String {
    format!("{} ({}..{})", grouped(spread.median), grouped(spread.min), grouped(spread.max))
}
