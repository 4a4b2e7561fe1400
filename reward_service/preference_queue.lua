-- The queue of comparisons: who is asked what, until when, and what was said. One call is one atomic step;
-- preference_store.py is its only caller.
--
-- KEYS  head (seq, fence, order), comparisons (id -> packed line), queue (id by order of arrival, while labels are wanted),
--       leases (token -> "id|session|order|rater"), expiries (token by ms), seen ("id\nrater" -> leased, labelled, skipped),
--       tallies ("id:labels", "id:skips", "id:leases", "id:size", "id:order"), labels (token -> label, or "withdrawn"),
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

local function settle(id, rater, token, label, skipped, needed, max_skips, at_ms)
  local count = redis.call('HINCRBY', tallies, id .. (skipped and ':skips' or ':labels'), 1)
  if count >= (skipped and max_skips or needed) then
    redis.call('ZREM', queue, id)
  end
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
  local start = 0
  while true do
    local ids = redis.call('ZRANGE', queue, start, start + 99)
    for _, id in ipairs(ids) do
      local taken = redis.call('HEXISTS', seen, id .. '\n' .. rater) == 1
      if not taken and tally(id, 'labels') + tally(id, 'leases') < needed then
        return begin_lease(id, rater, session, ttl_ms, nonce)
      end
    end
    if #ids < 100 then
      return ok()
    end
    start = start + 100
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
    redis.call('ZADD', queue, tally(id, 'order'), id)
    redis.call('RPUSH', log, ARGV[10])
    wrote()
    return begin_lease(id, rater, session, tonumber(ARGV[8]), ARGV[9])
  end
  return ok()
end

if operation == 'progress' then
  local rater, since_ms = ARGV[3], ARGV[4]
  local waiting, today = 0, 0
  for _, id in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
    local state = redis.call('HGET', seen, id .. '\n' .. rater)
    if state ~= 'labelled' and state ~= 'skipped' then
      waiting = waiting + 1
    end
  end
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', times, since_ms, '+inf')) do
    if string.match(name, '^.-\n(.*)$') == rater then
      today = today + 1
    end
  end
  return ok(redis.call('HLEN', comparisons), redis.call('ZCARD', times), waiting, today)
end

return redis.error_reply('unknown operation ' .. operation)
