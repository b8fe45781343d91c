-- Move a delayed job whose time has come to its queue.
-- KEYS  1 job  2 delayed  3 stream
-- ARGV  1 id  2 model
-- Gives 1 when this call moved it, else 0
local due = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not due or tonumber(due) > now_ms() then
  return 0
end
redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('HGET', KEYS[1], 'state') ~= 'delayed' then
  return 0
end
local entry = redis.call('XADD', KEYS[3], '*', 'id', ARGV[1], 'model', ARGV[2])
redis.call('HSET', KEYS[1], 'state', 'queued', 'entry', entry, 'stream', KEYS[3])
return 1
