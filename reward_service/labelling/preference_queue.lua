-- The queue of comparisons: who is asked what, until when, and what was said. One call is one atomic step;
-- preference_store.py is its only caller.
--
-- KEYS  head (seq, fence, order), comparisons (id -> packed line), queue (id by order of arrival, while labels are wanted),
--       leases (token -> "id|session|order|rater"), expiries (token by ms), seen ("id\nrater" -> leased, labelled, skipped),
--       tallies ("id:labels", "id:skips", "id:leases", "id:size", "id:order"; "id:raters", who labelled or skipped it,
--       "open\nrater", how many such are in the queue, "past\nrater", up to which order all are such), labels (token ->
--       label, or "withdrawn"),
--       log (entries in order), times ("token\nrater" by ms, of labels that stand and decide)
-- ARGV  the last seq that the caller knows of, operation, then the operation's own
-- Reply {status, ...}: ok, behind (Redis has lost writes that the caller was told of; nothing was done), and for labels
--       repeat (the label that the token has already given), expired, foreign

local head, comparisons, queue, leases, expiries, seen, tallies, labels, log, times = unpack(KEYS)
local operation = ARGV[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

if tonumber(redis.call('HGET', head, 'seq') or '0') < tonumber(ARGV[1]) then
  return { 'behind' }
end

local function ok(...)
  return { 'ok', redis.call('HGET', head, 'seq') or '0', ... }
end

local function tally(id, what)
  return tonumber(redis.call('HGET', tallies, id .. ':' .. what) or '0')
end

local function wrote()
  redis.call('HINCRBY', head, 'seq', 1)
end

local function parsed(token)
  local lease = redis.call('HGET', leases, token)
  if not lease then
    return nil
  end
  local id, session, order, rater = string.match(lease, '^(.-)|(.-)|(.-)|(.*)$')
  return { id = id, session = session, order = order, rater = rater }
end

local function end_lease(token, lease)
  redis.call('HDEL', leases, token)
  redis.call('ZREM', expiries, token)
  redis.call('HDEL', seen, lease.id .. '\n' .. lease.rater)
  redis.call('HINCRBY', tallies, lease.id .. ':leases', -1)
end

local function sweep() -- what has run out goes to somebody else
  for _, token in ipairs(redis.call('ZRANGEBYSCORE', expiries, '-inf', now)) do
    local lease = parsed(token)
    if lease then
      end_lease(token, lease)
    else
      redis.call('ZREM', expiries, token)
    end
  end
end

local function begin_lease(id, rater, session, ttl_ms, nonce)
  local order = {}
  math.randomseed(tonumber(string.sub(nonce, 1, 7), 16))
  for i = 1, tally(id, 'size') do
    local j = math.random(i)
    order[i] = order[j]
    order[j] = i - 1
  end
  local token = redis.call('HINCRBY', head, 'fence', 1) .. '-' .. nonce
  local shown = table.concat(order, ',')
  redis.call('HSET', leases, token, table.concat({ id, session, shown, rater }, '|'))
  redis.call('ZADD', expiries, now + ttl_ms, token)
  redis.call('HSET', seen, id .. '\n' .. rater, 'leased')
  redis.call('HINCRBY', tallies, id .. ':leases', 1)
  return ok(token, id, shown)
end

local function raters_of(id, without)
  local found = {}
  for name in string.gmatch(redis.call('HGET', tallies, id .. ':raters') or '', '[^\n]+') do
    if name ~= without then
      found[#found + 1] = name
    end
  end
  return found
end

local function count_open(names, step)
  for _, name in ipairs(names) do
    redis.call('HINCRBY', tallies, 'open\n' .. name, step)
  end
end

local function settle(id, rater, token, label, skipped, needed, max_skips, at_ms)
  local count = redis.call('HINCRBY', tallies, id .. (skipped and ':skips' or ':labels'), 1)
  local others = raters_of(id, rater)
  if redis.call('ZSCORE', queue, id) then
    if count >= (skipped and max_skips or needed) then
      redis.call('ZREM', queue, id)
      count_open(others, -1)
    else
      count_open({ rater }, 1)
    end
  end
  others[#others + 1] = rater
  redis.call('HSET', tallies, id .. ':raters', table.concat(others, '\n'))
  redis.call('HSET', seen, id .. '\n' .. rater, skipped and 'skipped' or 'labelled')
  redis.call('HSET', labels, token, label)
  if not skipped then
    redis.call('ZADD', times, at_ms, token .. '\n' .. rater)
  end
  wrote()
end

sweep()

if operation == 'add' then -- (id, packed, size) each; the reply names those that are new
  local new = {}
  for i = 3, #ARGV, 3 do
    local id = ARGV[i]
    if redis.call('HSETNX', comparisons, id, ARGV[i + 1]) == 1 then
      local order = redis.call('HINCRBY', head, 'order', 1)
      redis.call('ZADD', queue, order, id)
      redis.call('HSET', tallies, id .. ':size', ARGV[i + 2], id .. ':order', order)
      wrote()
      new[#new + 1] = id
    end
  end
  return ok(unpack(new))
end

if operation == 'lease' then
  local rater, session, ttl_ms, nonce = ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6]
  local needed, held = tonumber(ARGV[7]), {}
  for i = 8, #ARGV do
    held[ARGV[i]] = true
  end
  for _, token in ipairs(redis.call('ZRANGE', expiries, 0, -1)) do -- a page that was loaded again gets what it had
    local lease = parsed(token)
    if lease.rater == rater and lease.session == session and not held[token] then
      redis.call('ZADD', expiries, now + ttl_ms, token)
      return ok(token, lease.id, lease.order)
    end
  end
  local from, passing = '(' .. (redis.call('HGET', tallies, 'past\n' .. rater) or '0'), true
  while true do
    local ids = redis.call('ZRANGEBYSCORE', queue, from, '+inf', 'LIMIT', 0, 100)
    for _, id in ipairs(ids) do
      local state = redis.call('HGET', seen, id .. '\n' .. rater)
      if not state and tally(id, 'labels') + tally(id, 'leases') < needed then
        return begin_lease(id, rater, session, ttl_ms, nonce)
      end
      from = '(' .. tally(id, 'order')
      passing = passing and (state == 'labelled' or state == 'skipped')
      if passing then
        redis.call('HSET', tallies, 'past\n' .. rater, tally(id, 'order'))
      end
    end
    if #ids < 100 then
      return ok()
    end
  end
end

if operation == 'label' then
  local token, rater, label, skipped = ARGV[3], ARGV[4], ARGV[5], ARGV[6] == 'skip'
  local given = redis.call('HGET', labels, token)
  if given and given ~= 'withdrawn' then
    return { 'repeat', given }
  end
  local lease = parsed(token)
  if not lease then
    return { 'expired' }
  end
  if lease.rater ~= rater then
    return { 'foreign' }
  end
  end_lease(token, lease)
  settle(lease.id, rater, token, label, skipped, tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9])
  redis.call('RPUSH', log, ARGV[10])
  return ok()
end

if operation == 'import' then -- a label that needs no lease
  local id, rater, token, label, skipped = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7] == 'skip'
  local state = redis.call('HGET', seen, id .. '\n' .. rater)
  if state == 'labelled' or state == 'skipped' then
    return ok('known')
  end
  if state == 'leased' then
    for _, other in ipairs(redis.call('ZRANGE', expiries, 0, -1)) do
      local lease = parsed(other)
      if lease.id == id and lease.rater == rater then
        end_lease(other, lease)
      end
    end
  end
  settle(id, rater, token, label, skipped, tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10])
  redis.call('RPUSH', log, ARGV[11])
  return ok('new')
end

if operation == 'withdraw' then -- the label is taken back, and its rater asked again
  local token, rater, session, id, skipped = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7] == 'skip'
  local given = redis.call('HGET', labels, token)
  if not given then
    return { 'expired' }
  end
  if given ~= 'withdrawn' then
    redis.call('HSET', labels, token, 'withdrawn')
    redis.call('ZREM', times, token .. '\n' .. rater)
    redis.call('HINCRBY', tallies, id .. (skipped and ':skips' or ':labels'), -1)
    redis.call('HDEL', seen, id .. '\n' .. rater)
    redis.call('HDEL', tallies, 'past\n' .. rater)
    local others = raters_of(id, rater)
    redis.call('HSET', tallies, id .. ':raters', table.concat(others, '\n'))
    if redis.call('ZADD', queue, tally(id, 'order'), id) == 1 then
      count_open(others, 1)
    else
      count_open({ rater }, -1)
    end
    redis.call('RPUSH', log, ARGV[10])
    wrote()
    return begin_lease(id, rater, session, tonumber(ARGV[8]), ARGV[9])
  end
  return ok()
end

if operation == 'progress' then
  local rater, since_ms = ARGV[3], ARGV[4]
  local done = tonumber(redis.call('HGET', tallies, 'open\n' .. rater) or '0')
  local waiting, today = redis.call('ZCARD', queue) - done, 0
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', times, since_ms, '+inf')) do
    if string.match(name, '^.-\n(.*)$') == rater then
      today = today + 1
    end
  end
  return ok(redis.call('HLEN', comparisons), redis.call('ZCARD', times), waiting, today)
end

return redis.error_reply('unknown operation ' .. operation)
