-- Read waiting entries, the first streams first, at most `count` in all.
-- KEYS  the queue's streams in order
-- ARGV  1 group  2 worker  3 count  4 bytes of a field that are taken  5 bytes that are left of a longer one
-- Gives {{stream's place from 1, entry, {field, value, …}, bytes of the spec}, …}; of an entry only the fields we know
local left, most, kept = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local known = {id = true, job = true, model = true, last_chance = true}
local taken = {}
local failure

-- What anybody may add is read one by one and cut here: a hundred huge entries must not meet in anyone's memory.
local function add(place, item)
  local fields, size = {}, 0
  for i = 1, #item[2], 2 do
    local name, value = item[2][i], item[2][i + 1]
    if known[name] then
      if name == 'job' then size = #value end
      fields[#fields + 1] = name
      fields[#fields + 1] = #value > most and value:sub(1, kept) or value
    end
  end
  taken[#taken + 1] = {place, item[1], fields, size}
end

for place, stream in ipairs(KEYS) do
  while left > 0 do
    local reply = redis.pcall('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', 1, 'STREAMS', stream, '>')
    if not reply or reply.err or not reply[1] then
      failure = failure or (reply and reply.err and reply) or nil
      break
    end
    add(place, reply[1][2][1])
    left = left - 1
  end
  if left == 0 then break end
end
-- One stream that cannot be read (no group, a key of another type) does not stop the others.
return #taken == 0 and failure or taken
