-- Append events of a running attempt and publish them.
-- KEYS  1 job  2 log  3 live channel
-- ARGV  1 attempt  2 worker  3 seq of the first event  4 characters of text so far  5 visible 0|1
--       6 idle ms to renew the log's expiry, or ''  7 own channel or ''  8… the events
-- Gives {appended | duplicate | gap | fenced | gone, last seq, cancel requested 0|1, subscribers of the last event}
local job, log, live = KEYS[1], KEYS[2], KEYS[3]
local h = redis.call('HMGET', job, 'state', 'attempt', 'owner', 'seq', 'cancel')
if not h[1] then
  return {'gone', -1, 0, 0}
end
local cancel = h[5] == '1' and 1 or 0
if h[1] ~= 'running' or h[2] ~= ARGV[1] or h[3] ~= ARGV[2] then
  return {'fenced', -1, cancel, 0}
end
local first, last = tonumber(ARGV[3]), tonumber(h[4])
local n = #ARGV - 7
if first > last + 1 then
  return {'gap', last, cancel, 0}
end
local skip = last + 1 - first -- events of an earlier try whose reply was lost
if skip >= n then
  return {'duplicate', last, cancel, -1}
end
local seen = 0
for i = 1 + skip, n do
  local event = ARGV[7 + i]
  local seq = first + i - 1
  if seq == 0 then -- a backfill from the attempt's beginning may make the log anew
    redis.call('XADD', log, ARGV[1] .. '-0', 'e', event)
  -- NOMKSTREAM: a log that was evicted or expired must not begin again with a hole.
  elseif not redis.call('XADD', log, 'NOMKSTREAM', ARGV[1] .. '-' .. int(seq), 'e', event) then
    redis.call('HSET', job, 'seq', -1)
    return {'gap', -1, cancel, 0}
  end
  seen = redis.call(PUBLISH, live, event)
  if ARGV[7] ~= '' then
    seen = seen + redis.call('PUBLISH', ARGV[7], event)
  end
end
if ARGV[5] == '1' then
  redis.call('HSET', job, 'seq', int(first + n - 1), 'chars', ARGV[4], 'visible', '1')
else
  redis.call('HSET', job, 'seq', int(first + n - 1), 'chars', ARGV[4])
end
if ARGV[6] ~= '' then
  redis.call('PEXPIRE', log, ARGV[6])
end
return {'appended', first + n - 1, cancel, seen}
