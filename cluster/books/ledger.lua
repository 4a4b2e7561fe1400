-- The ledger's transitions. One call is one atomic, all-checked step of the books; ledger.py is its only caller.
--
-- KEYS  head (epoch, seq, refused, step, tickets_per_step), attempts ("ticket:attempt" -> "state|epoch|version|detail|final"),
--       counters, steps (step -> "epoch|learned or skipped|ticket:attempt,...")
-- ARGV  epoch, seq, operation, then the operation's own as words of one text: a client in Python takes ten times as long
--       over as many separate values
-- Reply {status, ...}: ok (then refused attempts, or what was read; attempts of a window as words of one text, too),
--       conflict (why), and, when nothing was done:
--       stale (current epoch, seq) - the caller's epoch is not the current one
--       behind (seq)               - Redis has lost operations that the caller was told of
--
-- seq numbers the operations of the one writer. One whose number was applied already is a repeat after a lost answer: it
-- changes nothing, and the last one gets the same reply (a copy that comes later still has nobody waiting for it).

local head, attempts, counters, steps = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local epoch, seq, operation = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local items = {}
for word in string.gmatch(ARGV[4] or '', '[^ ]+') do
  items[#items + 1] = word
end
local IN_FLIGHT = { leased = true, produced = true, scored = true }

local known = redis.call('HMGET', head, 'epoch', 'seq', 'step', 'tickets_per_step', 'refused')
local applied = tonumber(known[2] or '0')

if operation == 'fence' then -- a new epoch, above whatever is known: from here on the old driver writes nothing
  local opened = math.max(tonumber(known[1] or '0'), tonumber(epoch)) + 1
  redis.call('HSET', head, 'epoch', string.format('%d', opened))
  return { 'ok', opened }
end
if known[1] ~= epoch then
  return { 'stale', known[1] or '0', applied }
end

-- Attempts are read and written many at a time: a call from here takes longer than what it asks for.
local MOST = 2000
local held = {} -- by key, as they stand in the course of this call; false: there is none
local changed = {}

local function read(keys)
  for first = 1, #keys, MOST do
    local last = math.min(first + MOST - 1, #keys)
    local values = redis.call('HMGET', attempts, unpack(keys, first, last))
    for i = first, last do
      held[keys[i]] = values[i - first + 1]
    end
  end
end

local function read_every(nth) -- of the words each nth is a key, from the first on
  local keys = {}
  for i = 1, #items, nth do
    keys[#keys + 1] = items[i]
  end
  read(keys)
end

local function read_range(first, beyond) -- every attempt of a range of tickets; returns their keys
  local found, tickets, attempt = {}, {}, 1
  for ticket = first, beyond - 1 do
    tickets[#tickets + 1] = ticket
  end
  while #tickets > 0 do
    local keys, more = {}, {}
    for i, ticket in ipairs(tickets) do
      keys[i] = string.format('%d:%d', ticket, attempt)
    end
    read(keys)
    for i, key in ipairs(keys) do
      if held[key] then
        found[#found + 1] = key
        more[#more + 1] = tickets[i]
      end
    end
    tickets = more
    attempt = attempt + 1
  end
  return found
end

local function get(key)
  local value = held[key]
  if not value then
    return nil
  end
  local state, in_epoch, version, detail, final = string.match(value, '^(.-)|(.-)|(.-)|(.-)|(.-)$')
  return { state = state, epoch = in_epoch, version = version, detail = detail, final = final }
end

local function put(key, state, version, detail, final)
  held[key] = table.concat({ state, epoch, version, detail, final }, '|')
  changed[#changed + 1] = key
end

local function write()
  for first = 1, #changed, MOST do
    local values = {}
    for i = first, math.min(first + MOST - 1, #changed) do
      values[#values + 1] = changed[i]
      values[#values + 1] = held[changed[i]]
    end
    redis.call('HSET', attempts, unpack(values))
  end
end

-- Reads: they carry the last seq that the caller knows of.

if operation == 'counts' or operation == 'window' then
  if seq > applied then
    return { 'behind', applied }
  end
  local reply = {}
  if operation == 'counts' then
    reply[1] = 'ok'
    local pairs_read = redis.call('HGETALL', counters)
    for i = 1, #pairs_read do
      reply[i + 1] = pairs_read[i]
    end
    return reply
  end
  for _, key in ipairs(read_range(tonumber(items[1]), tonumber(items[2]))) do
    reply[#reply + 1] = key
    reply[#reply + 1] = held[key]
  end
  return { 'ok', table.concat(reply, ' ') }
end

if seq > applied + 1 then
  return { 'behind', applied }
end
if seq <= applied then
  local reply = { 'ok' }
  for key in string.gmatch(known[5] or '', '[^,]+') do
    reply[#reply + 1] = key
  end
  return reply
end

local change = {}
local function count(name, by)
  change[name] = (change[name] or 0) + by
end

local refused = {}
local function refuse(key)
  refused[#refused + 1] = key
  count('duplicates_refused', 1)
end

local operations = {}

function operations.issue() -- key...
  local keys, before = {}, {} -- a key -> the attempt that it follows
  for _, key in ipairs(items) do
    local ticket, attempt = string.match(key, '^(%d+):(%d+)$')
    keys[#keys + 1] = key
    if attempt ~= '1' then
      before[key] = string.format('%s:%d', ticket, attempt - 1)
      keys[#keys + 1] = before[key]
    end
  end
  read(keys)
  for _, key in ipairs(items) do
    local have = get(key)
    if have then
      if have.epoch ~= epoch then
        return key .. ' was issued before, in epoch ' .. have.epoch
      end
    elseif before[key] then
      local last = get(before[key])
      if not last then
        return key .. ' follows an attempt that was never issued'
      elseif not (last.final == '0' and (last.state == 'dropped' or last.state == 'rolled_back')) then
        return key .. ' follows an attempt that is ' .. last.state
      end
    end
  end
  for _, key in ipairs(items) do
    if not held[key] then
      put(key, 'leased', '', '', '')
      count('issued', 1)
      count('in_flight', 1)
    end
  end
end

function operations.produced() -- key, version...
  read_every(2)
  for i = 1, #items, 2 do
    local key, version = items[i], items[i + 1]
    local have = get(key)
    if have and have.epoch == epoch and have.state == 'leased' then
      put(key, 'produced', version, '', '')
    elseif not (have and have.epoch == epoch and have.version == version and IN_FLIGHT[have.state]) then
      refuse(key)
    end
  end
end

function operations.scored() -- key...
  read_every(1)
  for _, key in ipairs(items) do
    local have = get(key)
    if have and have.epoch == epoch and have.state == 'produced' then
      put(key, 'scored', have.version, '', '')
    elseif not (have and have.epoch == epoch and have.state == 'scored') then
      refuse(key)
    end
  end
end

function operations.drop() -- key, reason, final...
  read_every(3)
  for i = 1, #items, 3 do
    local key, reason, final = items[i], items[i + 1], items[i + 2]
    local have = get(key)
    if have and have.epoch == epoch and IN_FLIGHT[have.state] then
      put(key, 'dropped', have.version, reason, final)
      count('dropped', 1)
      count('dropped:' .. reason, 1)
      count('in_flight', -1)
    elseif not (have and have.state == 'dropped' and have.detail == reason and have.final == final) then
      refuse(key)
    end
  end
end

function operations.refuse() -- key...
  for _, key in ipairs(items) do
    refuse(key)
  end
end

function operations.trim() -- first ticket, end: what is sealed, every attempt of it
  local keys = read_range(tonumber(items[1]), tonumber(items[2]))
  for first = 1, #keys, MOST do
    redis.call('HDEL', attempts, unpack(keys, first, math.min(first + MOST - 1, #keys)))
  end
end

function operations.trim_steps() -- step...
  redis.call('HDEL', steps, unpack(items))
end

function operations.commit() -- step, learned or skipped, key...
  local step, outcome = items[1], items[2]
  local batch = {}
  for i = 3, #items do
    batch[#batch + 1] = items[i]
  end
  local entry = epoch .. '|' .. outcome .. '|' .. table.concat(batch, ',')
  if redis.call('HGET', steps, step) == entry then
    return nil
  elseif step ~= known[3] then
    return 'step ' .. step .. ' cannot be committed: the next step is ' .. known[3]
  elseif #batch ~= tonumber(known[4]) then
    return 'step ' .. step .. ' has ' .. #batch .. ' tickets and not ' .. known[4]
  end
  read(batch)
  local found = {}
  for i, key in ipairs(batch) do
    local have = get(key)
    if not have then
      return key .. ' was never issued'
    elseif have.epoch ~= epoch or not (have.state == 'produced' or have.state == 'scored') then
      return key .. ' cannot be committed at step ' .. step .. ': it is ' .. have.state .. ' in epoch ' .. have.epoch
    end
    found[i] = have
  end
  for i, key in ipairs(batch) do
    put(key, 'committed', found[i].version, step, '1')
  end
  redis.call('HSET', steps, step, entry)
  redis.call('HSET', head, 'step', string.format('%d', step + 1))
  count('committed', #batch)
  count('in_flight', -#batch)
  if outcome == 'skipped' then
    count('skipped_steps', 1)
  end
end

local conflict = operations[operation]()
if conflict then
  return { 'conflict', conflict }
end
write()
for name, by in pairs(change) do
  redis.call('HINCRBY', counters, name, by)
end
redis.call('HSET', head, 'seq', string.format('%d', seq), 'refused', table.concat(refused, ','))
table.insert(refused, 1, 'ok')
return refused
