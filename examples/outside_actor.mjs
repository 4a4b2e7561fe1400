// An actor outside Ray in another language: CartPole-v1 and its two-layer tanh policy, without any package.
//   node examples/outside_actor.mjs "$(cat RUN/outside.url)" RUN/outside.token
// The protocol is in docs/outside_actors.md. A fragment takes milliseconds here, so no lease has to be renewed.
import { readFileSync } from 'node:fs'

const [url, tokenFile] = process.argv.slice(2)
const headers = { Authorization: `Bearer ${readFileSync(tokenFile, 'utf8').trim()}`, 'Rollcall-Protocol': '1' }

async function ask(path, body, more = {}) {
  const method = body ? 'POST' : 'GET', content = !body || body instanceof Uint8Array ? body : JSON.stringify(body)
  const answer = await fetch(url.trim() + path, { method, body: content, headers: { ...headers, ...more } })
  if (answer.status === 304) return null
  if (answer.ok && path === '/v1/weights') return { tag: answer.headers.get('etag'), ...readTensors(await answer.arrayBuffer()) }
  const said = await answer.json()
  if (!answer.ok) throw Object.assign(new Error(`${said.error}: ${said.detail}`), { status: answer.status })
  return said
}

// safetensors: 8 bytes of length, a header in JSON, the tensors' bytes one after the other.
function readTensors(bytes) {
  const begin = 8 + Number(new DataView(bytes).getBigUint64(0, true)), tensors = {}
  const { __metadata__: metadata, ...entries } = JSON.parse(new TextDecoder().decode(bytes.slice(8, begin)))
  for (const [name, { dtype, data_offsets: [from, to] }] of Object.entries(entries))
    if (dtype === 'F32') tensors[name.replace('actor_critic.', '')] = new Float32Array(bytes.slice(begin + from, begin + to))
  return { version: Number(metadata.version), tensors }
}
function writeTensors(metadata, tensors) {
  const header = { __metadata__: metadata }, length = Buffer.alloc(8)
  let end = 0
  for (const [name, dtype, shape, array] of tensors) header[name] = { dtype, shape, data_offsets: [end, (end += array.byteLength)] }
  const text = Buffer.from(JSON.stringify(header))
  length.writeBigUInt64LE(BigInt(text.length))
  return Buffer.concat([length, text, ...tensors.map(([, , , array]) => new Uint8Array(array.buffer))])
}

const layer = (weight, bias, inputs, activation) =>
  Array.from(bias, (b, row) => activation(inputs.reduce((sum, x, i) => sum + x * weight[row * inputs.length + i], b)))
function choose(w, observation) { // an action, and its log-probability under the softmax of the logits
  let x = Array.from(observation)
  for (const n of [0, 2]) x = layer(w[`torso.mlp.layers.${n}.weight`], w[`torso.mlp.layers.${n}.bias`], x, Math.tanh)
  const logits = layer(w['policy_head.weight'], w['policy_head.bias'], x, (y) => y), top = Math.max(...logits)
  const normaliser = top + Math.log(logits.reduce((sum, y) => sum + Math.exp(y - top), 0))
  const action = Math.random() < Math.exp(logits[0] - normaliser) ? 0 : 1
  return [action, logits[action] - normaliser]
}

const reset = () => ({ state: Array.from({ length: 4 }, () => 0.1 * Math.random() - 0.05), length: 0 })
function step(env, action) { // as gymnasium's CartPole-v1: Euler, 0.02 s, 12 degrees, cut after 500 steps
  const [x, v, angle, spin] = env.state
  const temp = ((action ? 10 : -10) + 0.05 * spin * spin * Math.sin(angle)) / 1.1
  const turn = (9.8 * Math.sin(angle) - Math.cos(angle) * temp) / (0.5 * (4 / 3 - (0.1 * Math.cos(angle) ** 2) / 1.1))
  const push = temp - (0.05 * turn * Math.cos(angle)) / 1.1
  env.state = [x + 0.02 * v, v + 0.02 * push, angle + 0.02 * spin, spin + 0.02 * turn]
  return [Math.abs(env.state[0]) > 2.4 || Math.abs(env.state[2]) > (12 * Math.PI) / 180, ++env.length >= 500]
}

const shards = new Map() // shard -> its incarnation and envs, which go on from ticket to ticket
function produce({ header, payload: { shard, incarnation } }, { num_envs: B, unroll_length: T }, { version, tensors: w }) {
  if (shards.get(shard)?.incarnation !== incarnation) shards.set(shard, { incarnation, envs: Array.from({ length: B }, reset) })
  const { envs } = shards.get(shard), index = [], finals = [], episodes = []
  const floats = (size) => new Float32Array(size), flags = () => new Uint8Array(T * B), TB = [T, B]
  const observations = floats(T * B * 4), actions = new BigInt64Array(T * B), behaviour_logprobs = floats(T * B)
  const rewards = floats(T * B).fill(1), mask = flags().fill(1), terminated = flags(), truncated = flags(), episode_starts = flags()
  for (let at = 0; at < T * B; at++) {
    const b = at % B, env = envs[b]
    observations.set(env.state, 4 * at)
    episode_starts[at] = env.length === 0
    const [action, logprob] = choose(w, observations.subarray(4 * at, 4 * at + 4))
    ;[actions[at], behaviour_logprobs[at], [terminated[at], truncated[at]]] = [BigInt(action), logprob, step(env, action)]
    if (!terminated[at] && !truncated[at]) continue
    index.push(BigInt((at - b) / B), BigInt(b))
    finals.push(...env.state), episodes.push({ episode_return: env.length, length: env.length })
    envs[b] = reset()
  }
  const last = Float32Array.from(envs.flatMap((env) => env.state)), N = episodes.length
  const steps = { observations: { observation: 'observations' } }, named = (observation) => ({ observation })
  const unroll = { steps, last_observations: named('last'), final_index: 'index', final_observations: named('finals') }
  const own = { actions, behaviour_logprobs, rewards, terminated, truncated, mask, episode_starts } // by their names
  for (const name in own) steps[name] = name
  const dtypes = { BigInt64Array: 'I64', Float32Array: 'F32', Uint8Array: 'BOOL' }
  const tensors = Object.entries(own).map(([name, array]) => [name, dtypes[array.constructor.name], TB, array])
  tensors.push(['observations', 'F32', [T, B, 4], observations], ['last', 'F32', [B, 4], last])
  tensors.push(['index', 'I64', [N, 2], BigInt64Array.from(index)], ['finals', 'F32', [N, 4], Float32Array.from(finals)])
  const fields = JSON.stringify({ trajectory: { header, shard, incarnation, policy_version: version, unroll }, episodes })
  return writeTensors({ rollcall_version: '1', record: 'OutsideExperience', fields }, tensors)
}

for (let run, weights = {}, joined; ; )
  try {
    if (!run) ({ run, actor: headers['Rollcall-Actor'] } = joined = await ask('/v1/join', { name: 'node' }))
    if (run.env !== 'CartPole-v1' || run.unit !== 'fragment') throw Object.assign(new Error('not for this env'), { status: 400 })
    const { lease, ticket } = await ask('/v1/lease', { wait_s: Math.min(10, joined.lease_s / 2) })
    weights = (await ask('/v1/weights', undefined, weights.tag ? { 'If-None-Match': weights.tag } : {})) ?? weights
    await ask('/v1/trajectory', produce(ticket, run, weights), { 'Rollcall-Lease': lease })
  } catch ({ status, message }) {
    if (status === 410) break // the run is over
    if (status === undefined || status === 404) run = undefined // away, or it does not know us: join again
    else if (![409, 429, 503].includes(status)) throw new Error(message)
    await new Promise((done) => setTimeout(done, status === 409 ? 0 : 500))
  }
