-- One limit, shared by all processes: a sliding window over what was granted, counted in slices of time by Redis's
-- clock, and the queue for it. The same algorithm as window.py, which says why; one contract suite runs over both.
-- KEYS  1 window: hash. t<slice>, r<slice>: tokens and requests that count in that slice; lt, lr: the limits that the
--         provider told; pause: until when it wants no request, in ms
--       2 queue: sorted set of tickets ("<id>:<tokens>:<requests>") by when they came, in us
--       3 leases: sorted set of the same tickets by when they are void, in ms: who asks no more must not hold up others
-- ARGV  1 window ms  2 slice ms  3 limit of tokens  4 limit of requests
--       what a provider has told: 5 limit, 6 remaining, 7 ms until reset, of tokens; 8 9 10 the same of requests;
--       11 ms of pause. -1 is no limit, or not told
--       12 lease ms: how long a ticket is kept for who does not ask
--       13 take | settle | withdraw
--       take:     14 ticket  15 tokens  16 requests
--       settle:   14 slice  15 tokens back  16 requests back  17 tokens more
--       withdraw: 14 ticket
-- Gives whole numbers only: {status, now ms, slice, wait ms, paused ms, ahead, limit of tokens, limit of requests, used
-- tokens, used requests}. Status 0 waiting, 1 granted (or done), 2 more than the whole budget
local window_key, queue_key, leases_key = KEYS[1], KEYS[2], KEYS[3]
local width, step, lease = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[12])
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)
local current = math.floor(now / step)
local NEVER_FITS = width + step -- what is more than the budget is asked for again after a window

-- Whole numbers as text: tostring() would give 1.7e+12.
local function int(n)
  return string.format('%.0f', n)
end

local function leaves(slice) -- when all that was granted in this slice is a window old
  return (slice + 1) * step + width
end

local counts, used, stored = {t = {}, r = {}}, {t = 0, r = 0}, {}

local function put(dim, slice, n)
  if n > 0 then
    redis.call('HINCRBY', window_key, dim .. int(slice), int(n))
    counts[dim][slice] = (counts[dim][slice] or 0) + n
    used[dim] = used[dim] + n
  end
end

local fields = redis.call('HGETALL', window_key)
for i = 1, #fields, 2 do
  local dim, slice = string.match(fields[i], '^([tr])(%d+)$')
  if not dim then
    stored[fields[i]] = tonumber(fields[i + 1])
  else
    slice = tonumber(slice)
    local n = tonumber(fields[i + 1])
    if leaves(slice) <= now or n <= 0 then
      redis.call('HDEL', window_key, fields[i])
    elseif slice > current then -- the clock was set back: it counts from now, not until the clock is there again
      redis.call('HDEL', window_key, fields[i])
      put(dim, current, n)
    else
      counts[dim][slice] = (counts[dim][slice] or 0) + n
      used[dim] = used[dim] + n
    end
  end
end

local function lower(configured, told)
  if told and (configured < 0 or told < configured) then
    return told
  end
  return configured
end

-- If the provider has less left than we think, others use the same budget: count that too, until its reset.
local limit = {}
local function observe(dim, configured, first)
  local told, remaining, reset = tonumber(ARGV[first]), tonumber(ARGV[first + 1]), tonumber(ARGV[first + 2])
  if told >= 0 then
    stored['l' .. dim] = told
    redis.call('HSET', window_key, 'l' .. dim, int(told))
  end
  limit[dim] = lower(tonumber(configured), stored['l' .. dim])
  local more = limit[dim] - used[dim] - remaining
  if remaining >= 0 and limit[dim] >= 0 and more > 0 then
    reset = reset < 0 and width or math.min(width, reset)
    local slice = math.min(math.ceil((now + reset - width) / step) - 1, current)
    if leaves(slice) > now then
      put(dim, slice, more)
    end
  end
end
observe('t', ARGV[3], 5)
observe('r', ARGV[4], 8)

local pause = stored.pause or 0
if tonumber(ARGV[11]) > 0 then
  pause = math.max(pause, now + tonumber(ARGV[11]))
  redis.call('HSET', window_key, 'pause', int(pause))
end
local paused = math.max(0, pause - now)

local function fits(dim, need, taken)
  return limit[dim] < 0 or need == 0 or taken + need <= limit[dim]
end

local function free_at(dim, need)
  if fits(dim, need, used[dim]) then
    return now
  elseif need > limit[dim] then
    return now + NEVER_FITS
  end
  local slices = {}
  for slice in pairs(counts[dim]) do
    slices[#slices + 1] = slice
  end
  table.sort(slices)
  local excess = used[dim] + need - limit[dim]
  for _, slice in ipairs(slices) do
    excess = excess - counts[dim][slice]
    if excess <= 0 then
      return leaves(slice)
    end
  end
  return now + NEVER_FITS
end

local function leave(ticket)
  redis.call('ZREM', queue_key, ticket)
  redis.call('ZREM', leases_key, ticket)
end

local function answer(status, wait, ahead)
  return {status, now, current, wait, paused, ahead, limit.t, limit.r, used.t, used.r}
end

local function take(ticket, tokens, requests)
  for _, void in ipairs(redis.call('ZRANGEBYSCORE', leases_key, '-inf', now)) do
    leave(void)
  end
  if not fits('t', tokens, 0) or not fits('r', requests, 0) then
    leave(ticket)
    return answer(2, 0, 0)
  end
  local ahead = redis.call('ZRANK', queue_key, ticket) or redis.call('ZCARD', queue_key)
  if ahead == 0 and paused == 0 and fits('t', tokens, used.t) and fits('r', requests, used.r) then
    leave(ticket)
    put('t', current, tokens)
    put('r', current, requests)
    return answer(1, 0, 0)
  end
  redis.call('ZADD', queue_key, 'NX', int(now_us), ticket)
  redis.call('ZADD', leases_key, int(now + lease), ticket)
  local demand_t, demand_r = tokens, requests
  for _, other in ipairs(ahead > 0 and redis.call('ZRANGE', queue_key, 0, ahead - 1) or {}) do
    local t, r = string.match(other, ':(%d+):(%d+)$')
    demand_t, demand_r = demand_t + t, demand_r + r
  end
  local free = math.max(free_at('t', demand_t), free_at('r', demand_r), pause)
  return answer(0, math.max(1, free - now), ahead)
end

local function give_back(dim, slice, n)
  local there = counts[dim][slice]
  if there and n > 0 then
    n = math.min(n, there)
    redis.call('HINCRBY', window_key, dim .. int(slice), int(-n))
    used[dim] = used[dim] - n
  end
end

local op, given = ARGV[13], nil
if op == 'take' then
  given = take(ARGV[14], tonumber(ARGV[15]), tonumber(ARGV[16]))
elseif op == 'settle' then
  local slice = tonumber(ARGV[14])
  give_back('t', slice, tonumber(ARGV[15]))
  give_back('r', slice, tonumber(ARGV[16]))
  put('t', current, tonumber(ARGV[17]))
else
  leave(ARGV[14])
end
redis.call('PEXPIRE', window_key, int(leaves(current) - now + paused))
redis.call('PEXPIRE', queue_key, int(2 * lease))
redis.call('PEXPIRE', leases_key, int(2 * lease))
return given or answer(1, 0, 0)
